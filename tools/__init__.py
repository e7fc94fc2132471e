"""One command per file; run as `python tools/NAME.py` from anywhere."""
