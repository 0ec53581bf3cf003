"""Checkpoints of fairseq2: read, written, and our encoder as a model of it."""
