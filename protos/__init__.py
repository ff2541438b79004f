"""The wire protocol: message definitions, generated code and codec."""
