"""Fused operations: a plain reference and Triton kernels."""
