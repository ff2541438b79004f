"""The driver's side of a training run, and serial mode."""
