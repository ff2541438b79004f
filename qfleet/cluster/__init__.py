"""A run on Ray: its processes, where they run, and what connects them. No other package imports Ray."""
