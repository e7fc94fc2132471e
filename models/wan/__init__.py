"""A video diffusion transformer with the layers of Wan (arXiv:2503.20314), its encoders and its folders."""
