"""Environments: Atari, Gymnasium, grid worlds, video recording and Minari datasets.

Nothing else in `rl` imports this package, Gymnasium or ale-py.
"""
