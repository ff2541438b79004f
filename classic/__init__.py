"""Q-learning before DQN: from value iteration to fitted Q-iteration, and what stands beside it."""
