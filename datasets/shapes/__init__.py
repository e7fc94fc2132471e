"""Random shapes with random textures: objects without end, made without a download."""

from datasets.shapes.sample import VERSION, RandomShape, redraw_shape, sample_shape

__all__ = ["VERSION", "RandomShape", "redraw_shape", "sample_shape"]
