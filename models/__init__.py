"""Networks. Importing this package registers them."""

from models import unet  # noqa: F401
