"""A training run as its driver sees it, and serial mode."""
