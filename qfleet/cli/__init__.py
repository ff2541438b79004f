"""The command line `qfleet`: one module per command."""
