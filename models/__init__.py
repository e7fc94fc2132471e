"""Networks. Importing this package registers them."""

from models import autoencoder, embedder, unet  # noqa: F401
