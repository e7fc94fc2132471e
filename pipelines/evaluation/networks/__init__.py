"""Evaluation of single networks, without a generator."""
