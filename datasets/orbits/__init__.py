"""Data sets of orbits, and their layouts on disk."""
