"""Experience replay: shards, the gRPC service that serves them, and its clients."""
