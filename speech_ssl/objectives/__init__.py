"""Training objectives: one method a file."""
