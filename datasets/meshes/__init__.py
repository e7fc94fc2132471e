"""Reads meshes and renders them to orbits."""
