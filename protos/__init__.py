"""The wire protocol: messages, generated code, codec."""
