"""From samples to frames: the only place that knows strides."""
