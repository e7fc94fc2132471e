"""3D Gaussians: the data class, its files, its rendering, and the network that predicts it."""
