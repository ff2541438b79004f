"""Q-learning before DQN: from value iteration to fitted Q-iteration, and related methods."""
