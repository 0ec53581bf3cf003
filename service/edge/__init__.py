"""What surrounds every request, whatever its route: connections, origins, limits, logs and traces."""
