"""Fits one object to its views: 3D Gaussians, a radiance field or a signed distance field."""
