"""Environments: Atari, Gymnasium, grid worlds, videos, Minari's files.

Nothing else in `rl` imports this room, Gymnasium or ale-py.
"""
