"""The command line `qfleet`, a file for each command."""
