"""Loading and making of training data. Importing it registers the data sets."""

from datasets import image_dataset, laion_shards, packed_orbits, video_dataset

__all__ = ["image_dataset", "laion_shards", "packed_orbits", "video_dataset"]
