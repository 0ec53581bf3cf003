"""Training with fairseq2's Trainer as the engine."""
