"""Runs of the classic methods: learning with several seeds, logs, pictures."""
