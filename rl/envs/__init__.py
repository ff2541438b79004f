"""Environments: Atari, Gymnasium, grid worlds, videos, Minari's files.

Nothing else in `rl` imports this package, Gymnasium or ale-py.
"""
