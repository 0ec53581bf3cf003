"""The artifact (save and load) and converters from public checkpoints; large libraries have packages."""
