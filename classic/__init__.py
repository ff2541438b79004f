"""The methods that lead to DQN, from value iteration on, and Q-learning offline and with continuous actions."""
