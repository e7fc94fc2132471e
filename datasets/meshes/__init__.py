"""Meshes: reading, drawing, turning into orbits."""
