"""From the outputs of a CTC head to text: best path, beam search, and the times of words."""
