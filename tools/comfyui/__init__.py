"""Nodes for ComfyUI. Link this folder into `custom_nodes`, see README.md.

ComfyUI imports this file under a name of its own, so its imports are relative. Nothing of the rest of the repository is
imported, because ComfyUI has a package `utils` too. Another process does the work, see worker.py.
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
