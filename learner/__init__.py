"""Learning: updates, prefetching, publication, checkpoints."""
