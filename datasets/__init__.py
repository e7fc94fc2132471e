"""Loading and making of training data."""
