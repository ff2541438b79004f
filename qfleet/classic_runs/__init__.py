"""Runs of the classic methods: seeds, logs, pictures."""
