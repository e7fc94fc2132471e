"""Measures fits of objects to true, generated and damaged views: one table of all methods."""
