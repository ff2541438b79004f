"""Conversion of segments to Minari datasets and back."""
