"""Training data: from data sets to batches."""
