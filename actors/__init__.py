"""Acting: actors, the conversion of their steps to segments, evaluators."""
