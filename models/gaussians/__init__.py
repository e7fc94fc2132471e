"""3D Gaussians: the scene, its files, its rendering, and the network that makes it."""
