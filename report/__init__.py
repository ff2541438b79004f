"""Plots of run directories and of arrays."""
