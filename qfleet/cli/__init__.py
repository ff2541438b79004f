"""The command line `qfleet`: a module for each command or group of commands."""
