"""Actors, the conversion of their steps to segments, and evaluators."""
