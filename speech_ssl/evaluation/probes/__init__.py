"""What the frozen states of an encoder know: representations, and the probes that are fitted to them."""
