"""Programs that a benchmark runs in separate processes, and the functions that start them."""
