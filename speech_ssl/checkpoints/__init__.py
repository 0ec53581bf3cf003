"""The artifact (save and load) and converters from public checkpoints, with a package for each large
library."""
