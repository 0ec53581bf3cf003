"""From the outputs of a CTC head to text: the best path, beam search with words, times of words."""
