"""Networks and the diffusion process. Importing this package registers them."""

from models import autoencoder, classifier, diffusion, embedder  # noqa: F401
from models.gaussians import lgm  # noqa: F401
from models.unet import model  # noqa: F401
