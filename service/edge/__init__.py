"""What surrounds every request, whatever it asks: connections, origins, limits, logs and traces."""
