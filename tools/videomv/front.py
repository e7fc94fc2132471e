"""VideoMV: from a sentence or pictures to consistent views of an object, and to the object itself.

from videomv import ViewsPipeline

pipeline = ViewsPipeline.from_pretrained("mini")
result = pipeline("a wooden chair")
result.views_BVCHW  # (1, 24, 3, 128, 128), in [0, 1]
"""

# This file becomes `videomv/__init__.py` of the installed package. Each part is imported when it is first used, so that
# `videomv --help` does not wait for PyTorch.

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines import ViewsPipeline
    from utils.config import load_config

__all__ = ["ViewsPipeline", "load_config"]
PARTS = {"ViewsPipeline": "pipelines", "load_config": "utils.config"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("videomv")  # a Space has the package without an installation
    if name not in PARTS:
        raise AttributeError(f"module {__name__} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{PARTS[name]}"), name)
