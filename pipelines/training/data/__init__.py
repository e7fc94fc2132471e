"""From data sets to training batches."""
