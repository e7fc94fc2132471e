#!/usr/bin/env bash
# Install into the active Python environment. Arguments are passed on to `uv pip install`, for example another
# `-r FILE`, or `--torch-backend cpu` for PyTorch without CUDA.
set -euo pipefail
cd "$(dirname "$0")"

python - <<'PY'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"error: this is Python {sys.version.split()[0]}; make the environment with Python 3.11 or newer")
if sys.prefix == sys.base_prefix:
    sys.exit("error: no virtual environment is active; run `python3 -m venv .venv && . .venv/bin/activate` first")
PY

python -m pip install --quiet --disable-pip-version-check "uv>=0.8"
python -m uv pip install --python "$(command -v python)" -r requirements.txt "$@"
echo "installed; try: python inference.py --cfg configs/mini/t2v_infer.yaml"
