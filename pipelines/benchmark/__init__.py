"""What `tools/benchmark.py` measures, a file each; `runner` goes through them, `table` prints what comes out."""
