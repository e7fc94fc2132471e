"""Collect free meshes of objects: download them, and write one folder of .glb files with captions and attribution.

    python tools/collect_meshes.py workspace/objects --sources sweethome3d 0ad
    python tools/collect_meshes.py --list

writes workspace/objects/<source>/<name>.glb (y up, longest side 1, centred), objects.jsonl (a line for each object: id,
file, caption, licence, author, source, split, ...) and ATTRIBUTION.md. Downloads go to workspace/objects_downloads, and
may be deleted afterwards. What was done before is kept, so if you start a stopped run again, it continues.

Meshes under the GPL are left out unless they are asked for (--gpl). Without a network, or without apt-get or git, name
what you downloaded by hand: --from sweethome3d=sweethome3d-furniture_1.8-1_all.deb (a .deb file, or a folder).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from datasets.meshes.collecting.download import elapsed, unpack_deb
from datasets.meshes.collecting.objects import RULES, Entry, make_object, split_of, without_duplicates
from datasets.meshes.sources import LICENCE_TEXTS, SOURCES, Source
from utils.errors import ConfigError, DataError, WriteError, first_line
from utils.files import atomic_path, sole_use, writable_folder
from utils.jobs import run_jobs
from utils.script import run_script

RECORDS, LIST, PAGE = "records.jsonl", "objects.jsonl", "ATTRIBUTION.md"
LEFT_OUT = ("duplicate", "thin", "transparent", "empty")


@dataclass
class Counts:
    """What the summary says."""

    new: int = 0
    failed: int = 0
    noted: int = 0
    sources: int = 0
    start: float = field(default_factory=time.monotonic)


def collect(source: Source, options: argparse.Namespace, counts: Counts) -> None:
    """Download a source and write its objects; objects that failed are named and counted.

    Raises:
        DataError: the source cannot be downloaded or read at all.
        WriteError: the disk is full.
    """
    if source.needs is not None and importlib.util.find_spec(source.needs[0]) is None:
        raise DataError(f"its format needs a package that is not installed; pip install {source.needs[1]}")
    root, missing = fetched(source, options)
    counts.sources += bool(missing)
    for problem in missing:
        print(f"error: {source.name}: {problem}", file=sys.stderr)
    entries = source.reader(root, options.downloads / f"{source.name}_unpacked", source.terms)
    if not entries:
        raise DataError(f"no mesh was found in {root}; its layout has changed, or --from names another folder")
    free = [entry for entry in entries if options.gpl or not entry.licence.startswith("GPL")]
    if len(free) < len(entries):
        print(f"{source.name}: {len(entries) - len(free)} objects are left out, see --gpl", file=sys.stderr)
    entries = free[: options.limit]
    folder = options.out / source.name
    records = read_records(folder)
    todo = [entry for entry in entries if not is_made(folder, entry, records.get(entry.name), options)]
    print(f"{source.name}: {len(entries)} objects, {len(entries) - len(todo)} already there: {folder}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        if entry.name in records:
            records[entry.name] |= entry.described()
    jobs = [(entry.origin, entry, folder, options.texture) for entry in todo]
    finished = run_jobs(_make, jobs, workers=options.workers, total=len(todo), unit="object", out=options.out)
    with (folder / RECORDS).open("a", encoding="utf-8") as file:
        for made, error in finished:
            if error is not None:
                counts.failed += 1
                tqdm.write(f"error: {error}", file=sys.stderr)
                continue
            record, note = made
            record |= {"source": source.name, "texture": options.texture, "rules": RULES}
            records[record["name"]] = record
            counts.new += 1
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            if note:
                counts.noted += 1
                tqdm.write(f"warning: {note}", file=sys.stderr)
    write_records(folder, records)


def _make(origin: str, entry: Entry, folder: Path, max_texture: int) -> tuple[dict[str, Any], str]:
    try:
        return make_object(origin, entry, folder, max_texture=max_texture)
    except (DataError, OSError):
        raise
    except Exception as err:  # one object of thousands must not end the run
        raise DataError(f"{origin}: cannot be read ({type(err).__name__}: {first_line(err)})") from err


def fetched(source: Source, options: argparse.Namespace) -> tuple[Path, list[str]]:
    """The folder with the content of a source, the user's own or the downloaded one, and errors about missing parts."""
    folder = options.downloads / source.name
    own = options.own.get(source.name)
    if own is not None and own.is_dir():
        return own, []
    done = options.downloads / f"{source.name}.done"
    stamp = source.origin.described() if own is None else f"{own.absolute()} {own.stat().st_mtime_ns}"
    if folder.is_dir() and done.is_file() and done.read_text(encoding="utf-8", errors="replace") == stamp:
        return folder, []
    free = shutil.disk_usage(options.downloads).free / 1e6
    if free < source.megabytes:
        raise DataError(
            f"needs about {source.megabytes} MB in {options.downloads}, but {free:.0f} are free; free some space, or "
            "choose another --downloads"
        )
    print(f"{source.name}: {own or source.origin.described()} -> {folder}", file=sys.stderr)
    missing: list[str] = []
    if own is not None:
        unpack_deb(own, folder)
    else:
        missing = source.origin.fetch(folder)
    if not missing:
        done.write_text(stamp, encoding="utf-8", errors="backslashreplace")
    return folder, missing


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """What is known of the objects of a folder, by name; a line that was cut off when a run was killed is dropped."""
    path = folder / RECORDS
    known = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
            if record["source"] == folder.name:
                known[record["name"]] = record
        except (ValueError, KeyError, TypeError):
            continue
    return known


def write_records(folder: Path, records: dict[str, dict[str, Any]]) -> None:
    """Write the records of a folder, each once."""
    write_lines(folder / RECORDS, [records[name] for name in sorted(records)])


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines, completely or not at all."""
    with atomic_path(path) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def is_made(folder: Path, entry: Entry, record: dict[str, Any] | None, options: argparse.Namespace) -> bool:
    """Whether an object is there as this version would make it, or was left out by it."""
    if record is None or record.get("rules") != RULES or record.get("texture") != options.texture:
        return False
    if record.get("left_out") == "duplicate":  # with more variants it may be none
        return record.get("variants", 0) >= options.variants
    return "left_out" in record or (folder / f"{entry.name}.glb").is_file()


def finish(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Drop duplicates among all sources of the folder; write the list and the attribution page.

    Returns:
        The lines of the list, and how many objects were left out by reason.
    """
    order = [name for name in SOURCES if (options.out / name / RECORDS).is_file()]
    records = {name: read_records(options.out / name) for name in order}
    rows = [row for name in order for _, row in sorted(records[name].items()) if glb_of(options.out, row).is_file()]
    listed = []
    for row, before in without_duplicates(rows, variants=options.variants):
        if before is None:
            listed.append(row)
        else:
            row |= {"left_out": "duplicate", "reason": f"like {before}", "variants": options.variants}
            glb_of(options.out, row).unlink()
    for name in order:
        write_records(options.out / name, records[name])
    if not options.gpl:
        listed = [row for row in listed if not row["licence"].startswith("GPL")]
    write_lines(options.out / LIST, [list_line(row) for row in listed])
    write_page(options.out / PAGE, listed)
    return listed, Counter(row["left_out"] for known in records.values() for row in known.values() if "left_out" in row)


def glb_of(out: Path, record: dict[str, Any]) -> Path:
    """The file of an object."""
    return out / record["source"] / f"{record['name']}.glb"


def list_line(record: dict[str, Any]) -> dict[str, Any]:
    """The line of objects.jsonl about a record."""
    name, source = record["name"], record["source"]
    keys = ("caption", "title", "category", "source", "licence", "author", "faces", "textures", "cut_out", "group")
    line = {"id": f"{source}/{name}", "file": f"{source}/{name}.glb"} | {key: record[key] for key in keys}
    return line | {"split": split_of(record["group"])}


def write_page(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the attribution page: licences of each source, and the authors by licence."""
    lines = [
        "# Attribution",
        "",
        "Every object was changed: it was turned and scaled to a longest side of 1, and large textures were made",
        "smaller. `objects.jsonl` has title, licence and author of each. Renders of an object are adaptations of it.",
        "Works made of CC BY objects must name the authors; works made of CC BY-SA objects must also be under the same",
        "licence.",
        "",
        "| source | objects | licence | origin |",
        "| --- | --- | --- | --- |",
    ]
    counts = Counter((row["source"], row["licence"]) for row in rows)
    for (name, licence), number in sorted(counts.items()):
        source = SOURCES[name]
        lines.append(f"| `{name}` | {number} | {link(licence)} | {source.credit}; {source.origin.described()} |")
    for name, licence in sorted(counts):
        authors = sorted({row["author"] for row in rows if (row["source"], row["licence"]) == (name, licence)})
        lines += ["", f"## {name}, {licence}", "", ", ".join(authors) + "."]
    with atomic_path(path) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def link(licence: str) -> str:
    """A licence with a link to its text, if that is known."""
    return f"[{licence}]({LICENCE_TEXTS[licence]})" if licence in LICENCE_TEXTS else licence


def print_sources() -> int:
    """Print the table of sources."""
    for source in SOURCES.values():
        asked = "" if source.by_default else " (only with --gpl)"
        print(f"{source.name}: {source.credit}; {source.origin.described()}; {source.terms.licence}{asked}")
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="folder to write")
    parser.add_argument("--list", action="store_true", help="print the sources and stop")
    parser.add_argument("--sources", nargs="+", metavar="NAME", help="only these (default: all that are not GPL)")
    parser.add_argument("--gpl", action="store_true", help="also take meshes under the GPL")
    parser.add_argument(
        "--from",
        dest="own",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="a .deb file or folder instead of a download",
    )
    parser.add_argument("--downloads", type=Path, help="folder of the downloads (default: <out>_downloads)")
    parser.add_argument("--texture", type=int, default=512, help="longest side of textures in pixels (default 512)")
    parser.add_argument(
        "--variants", type=int, default=4, help="objects of one geometry in different colours (default 4)"
    )
    parser.add_argument("--limit", type=int, help="at most this many objects of each source, to try")
    parser.add_argument(
        "--workers", type=int, default=multiprocessing.cpu_count(), help="processes (default: all cores)"
    )
    options = parser.parse_args(argv)
    if options.list:
        return options
    if options.out is None:
        raise ConfigError("name the folder to write, for example workspace/objects; --list prints the sources")
    for name, low, high in (("texture", 16, 8192), ("variants", 1, 1000), ("workers", 1, 1024)):
        if not low <= getattr(options, name) <= high:
            raise ConfigError(f"--{name} must lie between {low} and {high}, got {getattr(options, name)}")
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit must be at least 1, got {options.limit}")
    options.out = Path(os.path.abspath(options.out)) if options.out.name in ("", "..") else options.out
    options.downloads = options.downloads or options.out.with_name(f"{options.out.name}_downloads")
    if options.downloads.resolve().is_relative_to(options.out.resolve()):
        raise ConfigError(
            f"--downloads {options.downloads} is in the folder of the objects, {options.out}; choose one beside it"
        )
    options.own = own_paths(options.own)
    options.sources = chosen(options)
    return options


def own_paths(texts: list[str]) -> dict[str, Path]:
    """Read the NAME=PATH of --from.

    Raises:
        ConfigError: a text has no `=` or no path, a name is there twice, or a path is neither a folder nor a .deb file.
    """
    own = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--from {text} must be NAME=PATH, for example sweethome3d=sweethome3d-furniture.deb")
        if name in own:
            raise ConfigError(f"--from: {name} has two paths, {own[name]} and {path}; name one of them")
        own[name] = Path(path)
        if not own[name].is_dir() and not (own[name].is_file() and own[name].suffix == ".deb"):
            raise ConfigError(f"--from {text}: {path} is neither a folder nor a .deb file; correct the path")
    return own


def chosen(options: argparse.Namespace) -> list[Source]:
    """The sources to collect, in the order of the table.

    Raises:
        ConfigError: a name is unknown, or a source is under the GPL and that was not asked for.
    """
    names = options.sources or [name for name, source in SOURCES.items() if options.gpl or source.by_default]
    for option, given in (("--sources", names), ("--from", options.own)):
        unknown = [name for name in given if name not in SOURCES]
        if unknown:
            raise ConfigError(f"{option}: {', '.join(unknown)} unknown; valid: {', '.join(SOURCES)}")
    unused = [name for name in options.own if name not in names]
    if unused:
        raise ConfigError(f"--from: {', '.join(unused)} is not among --sources; add it there")
    gpl = [name for name in names if not SOURCES[name].by_default and not options.gpl]
    if gpl:
        raise ConfigError(f"--sources: {', '.join(gpl)} is under the GPL, which holds for works made of it; add --gpl")
    return [source for name, source in SOURCES.items() if name in names]


def main(argv: list[str] | None = None) -> int:
    options = parse_args(argv)
    if options.list:
        return print_sources()
    writable_folder(options.out, option="out")
    writable_folder(options.downloads, option="--downloads")
    counts = Counts()
    with sole_use(options.out, option="out"), sole_use(options.downloads, option="--downloads"):
        try:
            for source in options.sources:
                try:
                    collect(source, options, counts)
                except WriteError:
                    raise
                except DataError as err:
                    counts.sources += 1
                    print(f"error: {source.name}: {err}", file=sys.stderr)
        finally:
            summarise(options, counts)
    return 1 if counts.failed or counts.sources else 0


def summarise(options: argparse.Namespace, counts: Counts) -> None:
    """Write the lists and print the summary, also of a run that was stopped."""
    listed, left_out = finish(options)
    size = sum(glb_of(options.out, row).stat().st_size for row in listed)
    reasons = ", ".join(f"{left_out[reason]} {reason}" for reason in LEFT_OUT if left_out[reason]) or "none"
    noted = f" ({counts.noted} with a warning)" if counts.noted else ""
    sources = f" and {counts.sources} sources not complete" * bool(counts.sources)
    print(
        f"{len(listed)} objects in {options.out / LIST} ({size / 1e6:.0f} MB), {counts.new} read now{noted} in "
        f"{elapsed(counts.start)}; left out: {reasons}; failed: {counts.failed}{sources}; "
        f"downloads: {options.downloads}"
    )


if __name__ == "__main__":
    run_script(main)
