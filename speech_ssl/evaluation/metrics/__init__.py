"""Scores: error rates of texts, detection of events, verification of speakers."""
