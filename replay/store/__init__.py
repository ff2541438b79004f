"""Storing: what one shard holds, how it draws, and what of it is on disk."""
