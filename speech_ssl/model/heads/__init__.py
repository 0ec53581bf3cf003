"""Heads that turn hidden states into answers, and their specs."""
