"""Distributed training on Ray: the processes of a run and their connections. No other package imports Ray."""
