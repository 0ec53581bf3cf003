"""fairseq2's trainer as an engine of ours."""
