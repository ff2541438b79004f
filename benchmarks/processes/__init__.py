"""Programs that run beside a benchmark in processes of their own, and the functions that start them."""
