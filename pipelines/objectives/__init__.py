"""What can be trained. Importing this package registers the entrances."""

from pipelines.objectives import autoencoder, classifier, diffusion, embedder, head

__all__ = ["autoencoder", "classifier", "diffusion", "embedder", "head"]
