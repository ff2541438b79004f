"""The command `qfleet`: words to calls, one file a command."""
