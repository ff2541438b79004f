"""A run on Ray: its processes, where they go, and what ties them together. Ray is imported in this room alone."""
