"""What can be trained: a network, its data and its loss."""
