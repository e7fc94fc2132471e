"""Files and networks that stay loaded between the tests of a process.

Many tests start several runs with the same weights, and loading takes four fifths of a tiny run. What is kept serves
another load only if every setting that the load reads and every byte of the files are the same.

- `kept_files`, in every test: what was unpickled, autoencoders, embedders and the values of YAML texts, of which every
  load gets its own copy.
- `keeping`, in tests of sampling: all networks of a pipeline, without a copy. A test that changes one ends its keeping.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import weights
from models.autoencoder import AutoencoderKL
from models.embedder import FrozenOpenCLIPTtxtVisualEmbedder
from pipelines import parts
from pipelines.parts import Parts
from utils import config
from utils.registry import Section
from utils.settings.run import RunConfig
from utils.settings.yaml_text import Document

LARGEST = 20  # number of what is kept in one process, of each kind
MOST_TEXTS = 200  # number of YAML texts
SETTINGS = (
    "UNet", "auto_encoder", "embedder", "reconstruction", "test_model", "lora", "refine", "cameras", "resolution",
    "channels_last", "low_memory",
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """Loaded networks, what they looked like then, what was logged, and the files with their digests."""

    parts: Parts
    state: Any
    records: list[logging.LogRecord]
    files: dict[str, str]


_kept: dict[Any, Kept] = {}


def _files(cfg: RunConfig) -> dict[str, str]:
    """The weight files of a run, each with the digest of its bytes."""
    paths = {path for path in parts.weight_files(cfg).values() if path and Path(path).is_file()}
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}


def _key(cfg: RunConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """Everything that decides what is loaded; None: this run is not kept."""
    files = _files(cfg)
    untrained = not (cfg.auto_encoder.pretrained and cfg.embedder.pretrained)
    if untrained or cfg.compile or any(path and path not in files for path in parts.weight_files(cfg).values()):
        return None
    settings = "\n".join(repr(getattr(cfg, name)) for name in SETTINGS)
    for path, digest in files.items():
        settings = settings.replace(repr(path), digest)
    return settings, str(device), dtype


def _state(loaded: Parts) -> Any:
    """What changes when a test trains, patches or moves a network."""
    found = []
    for network in (loaded.unet, loaded.autoencoder, loaded.embedder, loaded.head):
        for name, module in network.named_modules() if isinstance(network, nn.Module) else ():
            members = {key: id(value) for key, value in vars(module).items() if key != "twin"}  # each pipeline sets it
            found.append((name, members, len(module._forward_hooks)))
        for tensor in (*network.parameters(), *network.buffers()) if isinstance(network, nn.Module) else ():
            total = round(float(tensor.detach().double().sum()), 6)  # the order of summation follows the memory format
            found.append((tensor.dtype, tensor.requires_grad, total))
    return found


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _recorded() -> Iterator[list[logging.LogRecord]]:
    """What is logged meanwhile, of every level."""
    root, handler = logging.getLogger(), _Records()
    loggers = [logging.getLogger(name) for name in ("models", "pipelines", "utils")]
    levels = [logger.level for logger in loggers]
    root.addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    try:
        yield handler.records
    finally:
        root.removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Keeper:
    """Replaces load_parts for one test."""

    def __init__(self, load: Callable[..., Parts]) -> None:
        self.load, self.used = load, set()

    def __call__(self, cfg: RunConfig, *, device: torch.device, dtype: torch.dtype) -> Parts:
        key, files = _key(cfg, device, dtype), _files(cfg)
        if key is None:
            return self.load(cfg, device=device, dtype=dtype)
        self.used.add(key)
        if key in _kept:
            _log_again(_kept[key], files)
            return _kept[key].parts
        with _recorded() as records:
            loaded = self.load(cfg, device=device, dtype=dtype)
        while len(_kept) >= LARGEST:
            del _kept[next(iter(_kept))]
        _kept[key] = Kept(loaded, _state(loaded), records, files)
        return loaded


def _log_again(kept: Kept, files: dict[str, str]) -> None:
    """Log what loading logs, with the names that the files have now."""
    for record in kept.records:
        if logging.getLogger(record.name).isEnabledFor(record.levelno):
            text = record.getMessage()
            for path, digest in kept.files.items():
                text = text.replace(path, next(now for now, same in files.items() if same == digest))
            logging.getLogger(record.name).log(record.levelno, "%s", text)


@contextmanager
def keeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let sampling pipelines that are built meanwhile share their networks with other tests."""
    keeper = Keeper(parts.load_parts)
    monkeypatch.setattr("pipelines.sampling.pipeline.load_parts", keeper)
    yield
    for key in keeper.used & _kept.keys():
        if _state(_kept[key].parts) != _kept[key].state:
            del _kept[key]


_copied: dict[Any, Any] = {}
MOST_BYTES = 20_000_000  # of a file that is kept


def _copy_of(key: Any, load: Callable[[], Any]) -> Any:
    made = _copied.pop(key) if key in _copied else load()
    _copied[key] = made  # the one that was used last comes last
    while len(_copied) > LARGEST:
        del _copied[next(iter(_copied))]
    # copying the words of a tokenizer would take longer than everything else; nothing changes them
    shared = {id(made.tokenizer): made.tokenizer} if isinstance(made, FrozenOpenCLIPTtxtVisualEmbedder) else {}
    return copy.deepcopy(made, shared)


_parsed: dict[Any, Document] = {}


def kept_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files that are read meanwhile be copies of what an earlier test read from the same bytes."""
    read, build, parse = weights._read_pickle, Section.build, config.parse

    def parse_text(text: str, *, named: str, **options: Any) -> Document:
        key = (text, named, *options.items())
        document = _parsed.pop(key) if key in _parsed else parse(text, named=named, **options)
        _parsed[key] = document
        while len(_parsed) > MOST_TEXTS:
            del _parsed[next(iter(_parsed))]
        return copy.deepcopy(document)

    def read_pickle(path: Path, *, option: str) -> Any:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return read(path, option=option)
        return _copy_of(hashlib.sha256(path.read_bytes()).digest(), lambda: read(path, option=option))

    def build_section(section: Section, **runtime: Any) -> Any:
        path = Path(section.pretrained or "")
        kept = section and section.cls in (AutoencoderKL, FrozenOpenCLIPTtxtVisualEmbedder) and path.is_file()
        if not kept or runtime or path.stat().st_size > MOST_BYTES:
            return build(section, **runtime)
        digest = hashlib.sha256(path.read_bytes()).digest()
        return _copy_of((repr(section.changed(pretrained=None)), digest), lambda: build(section, **runtime))

    monkeypatch.setattr(weights, "_read_pickle", read_pickle)
    monkeypatch.setattr(Section, "build", build_section)
    monkeypatch.setattr(config, "parse", parse_text)
