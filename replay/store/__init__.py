"""One shard: what it stores, how it draws, and its snapshots on disk."""
