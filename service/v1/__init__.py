"""The routes under `/v1` for clips, what they take and what they answer."""
