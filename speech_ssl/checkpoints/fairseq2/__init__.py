"""fairseq2: read and write its checkpoints, and offer our encoder as one of its models."""
