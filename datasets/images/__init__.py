"""Data sets of single images, for training in addition to orbits."""
