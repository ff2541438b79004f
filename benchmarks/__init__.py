"""Measurements that anyone can run: `qfleet bench NAME`."""
