"""Training objectives: a network, its data and its loss."""
