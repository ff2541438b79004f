"""What runs beside a benchmark in processes of its own, with the functions that start it where they stand alone."""
