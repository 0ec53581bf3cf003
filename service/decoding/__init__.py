"""Files to samples, in processes that may die."""
