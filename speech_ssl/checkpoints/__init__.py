"""The artifact (save and load), and converters from public checkpoints."""
