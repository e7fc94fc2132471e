"""What can be trained. Importing this package registers the entrances."""

from pipelines.training.objectives import autoencoder, classifier, diffusion, embedder, head, head_tuning

__all__ = ["autoencoder", "classifier", "diffusion", "embedder", "head", "head_tuning"]
