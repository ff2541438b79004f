"""What both ends of a connection agree on: gRPC's options, the size of a message, and how some errors begin."""

from __future__ import annotations

MAX_MESSAGE = 64 * 2**20  # bytes
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # without it an unanswered ping is found out after a minute
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
]
SERVER_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
# Both errors are RESOURCE_EXHAUSTED, and the client tries again. After any other error with that code it must not.
NO_CREDIT = "no insert credit"  # how the error of a segment that waited too long for credit begins
NO_STREAM = "no stream is free"  # how the error of a stream above the limit begins
