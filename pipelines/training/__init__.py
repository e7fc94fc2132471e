"""Training: the training loop, its state on disk, its data and its objectives."""
