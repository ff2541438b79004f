"""Settings shared by clients and server: gRPC options, the message size limit, and prefixes of two error messages."""

from __future__ import annotations

MAX_MESSAGE = 64 * 2**20  # bytes
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # default: 60 s
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
# Prefixes of the two RESOURCE_EXHAUSTED errors after which clients retry. Any other error with that code is fatal.
NO_CREDIT = "no insert credit"  # a segment waited too long for credit
NO_STREAM = "no stream is free"  # too many streams are open
