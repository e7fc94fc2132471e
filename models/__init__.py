"""Networks and the diffusion process. Importing this package registers them."""

from models import autoencoder, classifier, diffusion, embedder, lgm, unet  # noqa: F401
