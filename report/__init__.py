"""Pictures of run directories and of arrays."""
