"""Files to samples, in processes that may die: a file that crashes a decoder, or takes too long or too much
memory, is refused, and nothing else is lost."""
