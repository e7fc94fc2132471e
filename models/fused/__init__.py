"""Networks with the same weights, arranged for speed."""
