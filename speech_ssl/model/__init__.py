"""The encoder: convolutional front end, positions, transformer, quantizers, presets."""
