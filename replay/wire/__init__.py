"""The gRPC service of a shard, and its clients. Only this package imports gRPC."""
