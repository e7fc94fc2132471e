"""Sampling: from a prompt or an image to an orbit."""
