"""The fused operations: Triton kernels, and the same operations in plain PyTorch as reference."""
