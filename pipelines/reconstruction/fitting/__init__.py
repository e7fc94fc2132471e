"""Fits one object to its views: 3D Gaussians, a radiance field or a signed distance field."""

from pipelines.assets import ASSET_FILES

FIELD_FILE, SHEET_FILE = "field.safetensors", "fit.png"
RESULT_FILE, STATE_FILE = "result.json", "unfinished.safetensors"
FIT_FILES = (*ASSET_FILES, FIELD_FILE, SHEET_FILE, RESULT_FILE, STATE_FILE)
