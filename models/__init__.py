"""Networks. Importing this package registers them."""

from models import autoencoder, embedder

__all__ = ["autoencoder", "embedder"]
