"""Training runs, one readable file each."""
