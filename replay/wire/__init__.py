"""The service and its clients. gRPC is imported in this package alone."""
