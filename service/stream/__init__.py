"""Audio while it is being said, over a WebSocket."""
