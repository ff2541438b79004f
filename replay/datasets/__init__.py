"""Segments to Minari datasets and back."""
