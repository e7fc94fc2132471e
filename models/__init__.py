"""Networks and the diffusion process. Importing this package registers them."""

from pathlib import Path

from utils.registry import import_parts

import_parts(__name__, Path(__file__).parent)
