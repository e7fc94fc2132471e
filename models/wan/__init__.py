"""The parts of Wan (arXiv:2503.20314): transformer, autoencoder, text encoder, and their published folders."""
