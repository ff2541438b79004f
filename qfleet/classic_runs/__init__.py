"""Runs of the methods before DQN: seeds, logs, pictures."""
