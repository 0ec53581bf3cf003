"""What turns hidden states into answers, and what describes it."""
