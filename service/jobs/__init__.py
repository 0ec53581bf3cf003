"""What is sent once and asked about later: its store, its runner, its routes."""
