"""Replay: shards, the service around them, its clients."""
