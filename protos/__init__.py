"""The wire: messages, generated code, codec."""
