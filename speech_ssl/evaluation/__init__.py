"""Measures of learned representations."""
