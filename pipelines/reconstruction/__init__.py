"""From views to 3D Gaussians."""
