"""Reconstruction: from views to 3D Gaussians."""
