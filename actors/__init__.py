"""Acting: actors, what they make of their steps, evaluators."""
