"""Storing: shards, the service around them, its clients."""
