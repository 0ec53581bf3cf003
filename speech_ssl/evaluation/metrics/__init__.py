"""Metrics: error rates of texts, detection of events, speaker verification."""
