"""Returns, TD errors, networks, policies, evaluation and environments. Imports no other package of Qfleet."""
