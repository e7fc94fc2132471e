"""Networks and the diffusion process. Importing this package registers them."""

from models import diffusion, unet  # noqa: F401
