"""Distributed training on Ray: the processes of a run and the connections between them. No other package imports Ray."""
