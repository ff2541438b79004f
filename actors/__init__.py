"""Acting: rollouts, actors, evaluators."""
