"""Views of one object with known cameras, in the formats of other programs."""
