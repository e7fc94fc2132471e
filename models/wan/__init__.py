"""A video diffusion transformer with the layers of Wan, for orbits."""
