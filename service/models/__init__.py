"""The models that are served, and the way of clips through them: queues, processes, memory."""
