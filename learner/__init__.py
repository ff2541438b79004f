"""The learner: updates, prefetching, publications and checkpoints."""
