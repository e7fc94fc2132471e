"""The measures of `tools/benchmark.py`, one per file; `runner` runs them, and `table` prints the results."""
