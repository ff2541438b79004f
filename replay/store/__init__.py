"""One shard: its storage, its selectors, and its snapshots on disk."""
