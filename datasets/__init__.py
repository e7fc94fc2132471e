"""Loading and making of training data. Importing it registers the data sets."""

from datasets import packed_orbits, video_dataset

__all__ = ["packed_orbits", "video_dataset"]
