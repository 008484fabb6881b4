"""What a file is, what this machine has, and how fast a model runs on it."""
