"""Whole corpora to features on the disk: decoded in processes of their own, computed, and kept row by row."""
