"""Learning: updates, prefetch, publication, checkpoints."""
