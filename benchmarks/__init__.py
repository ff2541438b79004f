"""Benchmarks, run with `qfleet bench NAME`."""
