"""What runs an encoder: one file an engine, none of which knows another."""
