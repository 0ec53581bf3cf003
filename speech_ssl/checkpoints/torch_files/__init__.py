"""Read files that torch saved as plain data, without running anything that they name."""
