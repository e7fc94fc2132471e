"""Text and JSON as users have them, leftovers of killed processes, locks, full disks and closed pipes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import ROOT
from utils import files
from utils.errors import DataError, WriteError
from utils.files import (
    atomic_folder,
    atomic_path,
    parse_json,
    read_json,
    read_lines,
    read_text,
    sole_use,
    tidy,
    writable_folder,
    write_json,
)
from utils.script import run_script

TEXTS = {
    "plain": b"a\n\xc3\xa9\n",
    "byte order mark": b"\xef\xbb\xbfa\n\xc3\xa9\n",
    "Windows": b"a\r\n\xc3\xa9\r\n",
    "old Mac": b"a\r\xc3\xa9\r",
    "both": b"\xef\xbb\xbfa\r\n\xc3\xa9",
    "joined files": b"\xef\xbb\xbfa\n\xef\xbb\xbf\xc3\xa9",
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_read_as_users_save_it(tmp_path, name):
    (tmp_path / "t.txt").write_bytes(TEXTS[name])
    assert read_lines(tmp_path / "t.txt", option="x") == ["a", "é"]


def test_a_line_ends_only_where_an_editor_shows_it(tmp_path):
    (tmp_path / "t.txt").write_text("a\u2028b\x0bc\x85d\n\ne", encoding="utf-8")
    assert read_lines(tmp_path / "t.txt", option="x") == ["a\u2028b\x0bc\x85d", "", "e"]
    (tmp_path / "t.txt").write_bytes(b"")
    assert read_lines(tmp_path / "t.txt", option="x") == []


OTHER_TEXTS = {
    "Latin-1": ("a\ncafé".encode("latin-1"), r"t.txt is not UTF-8 text \(byte 0xe9 in line 2; .*Windows-1252"),
    "UTF-16": ("a red mug".encode("utf-16"), "is not UTF-8 text but UTF-16; save it as UTF-8"),
    "UTF-16 without a mark": ("a red mug".encode("utf-16-le"), r"zero bytes; its encoding may be UTF-16"),
    "UTF-32": ("a red mug".encode("utf-32"), "but UTF-32"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "byte 0x89 in line 1"),
}


@pytest.mark.parametrize("name", OTHER_TEXTS)
def test_other_encodings_are_named(tmp_path, name):
    content, message = OTHER_TEXTS[name]
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / "t.txt", option="test_list_path")


@pytest.mark.parametrize(("path", "message"), [("no.txt", "no such file"), (".", "is a folder"), ("a\0b", "cannot be")])
def test_what_is_no_file_is_named(tmp_path, path, message):
    with pytest.raises(DataError, match=rf"x=.*{message}"):
        read_text(tmp_path / path, option="x")


def test_json_is_read_with_a_byte_order_mark(tmp_path):
    (tmp_path / "captions.json").write_bytes(b'\xef\xbb\xbf{\r\n"a": "b"}')
    assert read_json(tmp_path / "captions.json", option="caption_dir", kind=dict) == {"a": "b"}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{", dict, "not valid JSON"),
        ("[" * 100_000, list, "nested too deeply"),
        ('{"a":' * 100_000, dict, "nested too deeply"),
        ("[1]", dict, "must contain a JSON object, but contains a list"),
        ("null", dict, "but contains null"),
        ("{}", list, "must contain a JSON list, but contains an object"),
        ('{"a": "\\ud800"}', dict, "surrogates not allowed"),
        ("9" * 5000, object, "not valid JSON"),
        ("", dict, "not valid JSON"),
    ],
)
def test_other_json_is_refused_in_one_line(text, kind, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_json(text, name="x=a.json", kind=kind)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def dead_process():
    line = [sys.executable, "-c", "from utils.files import _process; print(_process())"]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()


def test_leftovers_of_killed_processes_go_and_those_of_live_ones_stay(tmp_path):
    dead, live = dead_process(), files._process()
    machine = live.rpartition("-")[2]
    reused = f"{os.getpid()}-1-{machine}"  # a process that had this number before
    elsewhere = f"{os.getpid()}-1-00000000"
    for process in (dead, live, reused, elsewhere):
        (tmp_path / f".a.{process}.part.png").write_bytes(b"half")
        (tmp_path / f".b.{process}.part").mkdir()
        (tmp_path / f".b.{process}.part" / "views").mkdir()
    old = tmp_path / f".c.{elsewhere}.part"
    old.mkdir()
    os.utime(old, (0, 0))
    for name in (".gitignore", "part.png", ".a.part.png", ".12.part.png"):  # a user's own
        (tmp_path / name).touch()
    writable_folder(tmp_path, option="x")
    kept = {f".{name}" for process in (live, elsewhere) for name in (f"a.{process}.part.png", f"b.{process}.part")}
    assert {path.name for path in tmp_path.iterdir()} == kept | {
        ".gitignore",
        "part.png",
        ".a.part.png",
        ".12.part.png",
    }


def test_a_folder_is_never_lost_between_two_names(tmp_path):
    """A kill after the older version was moved aside, before the new one has its name."""
    dead = dead_process()
    (tmp_path / f".sample.{dead}.old").mkdir()
    (tmp_path / f".sample.{dead}.old" / "views.txt").write_text("old")
    (tmp_path / f".sample.{dead}.part").mkdir()
    (tmp_path / f".both.{dead}.old").mkdir()
    (tmp_path / "both").mkdir()
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both", "sample"]
    assert (tmp_path / "sample" / "views.txt").read_text() == "old"


@pytest.mark.parametrize("fails", [1, 2])
def test_an_older_folder_stays_if_the_new_one_gets_no_name(tmp_path, monkeypatch, fails):
    with atomic_folder(tmp_path / "a") as part:
        (part / "x").write_text("old")
    rename, calls = type(tmp_path).rename, []

    def broken(self, target):
        calls.append(target)
        if len(calls) == fails:
            raise OSError(errno.EIO, "broken")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", broken)
    with pytest.raises(OSError, match="broken"), atomic_folder(tmp_path / "a") as part:
        (part / "x").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "old"


def test_killed_while_writing_leaves_nothing_for_the_next(tmp_path):
    code = f"""
from utils.files import atomic_folder
import os, time
with atomic_folder({str(tmp_path / "a")!r}) as part:
    (part / "x").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    tidy(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1  # it still writes
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    files._tidied.clear()  # as in a new process
    tidy(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 250 + ".json", "é" * 120 + ".json", "a.b.c", ".hidden"])
def test_long_and_odd_names_are_written(tmp_path, name):
    write_json(tmp_path / name, [1])
    assert json.loads((tmp_path / name).read_text()) == [1]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("write", ["text", "safetensors", "torch"])
def test_every_writer_says_that_the_disk_is_full(tmp_path, write):
    """As a limit of the size of files."""
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    tensor = torch.zeros(100_000)
    writers = {
        "text": lambda file: file.write_text("x" * 100_000),
        "torch": lambda file: torch.save(tensor, file),
        "safetensors": lambda file: save_file({"x": tensor}, file),
    }

    def in_a_folder():
        with atomic_folder(tmp_path / "a") as part, atomic_path(part / "x.bin") as file:
            writers[write](file)

    try:
        with pytest.raises(WriteError, match=r"a/x.bin cannot be written \(.*\); free some space, or choose") as caught:
            in_a_folder()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_locked_while_it_is_used(tmp_path):
    code = f"""
from pathlib import Path
from utils.files import sole_use
with sole_use(Path({str(tmp_path)!r}), option="log_dir"):
    print("mine")
"""
    line = [sys.executable, "-c", code]
    with sole_use(tmp_path, option="log_dir"):
        other = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    assert f"log_dir={tmp_path} is used by another run (process {os.getpid()} on" in other.stderr
    assert not list(tmp_path.iterdir())
    (tmp_path / ".in_use").write_text("left by a kill")
    assert subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False).stdout == "mine\n"


def script(tmp_path, body, shell, *arguments):
    file = tmp_path / "script.py"
    start = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom utils.script import run_script\n"
    file.write_text(f"{start}def main():\n    {body}\nrun_script(main)\n")
    line = ["bash", "-c", f"set -o pipefail; {sys.executable} {file} {shell}", "x", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)


def test_a_reader_that_ends_is_no_error(tmp_path):
    done = script(tmp_path, "print(*range(10**6), sep='\\n')", "| head -2")
    assert (done.returncode, done.stdout, done.stderr) == (141, "0\n1\n", "")


def test_an_output_that_is_full_is_one_line(tmp_path):
    done = script(tmp_path, "print('x')", "> /dev/full")
    assert done.returncode == 2
    assert done.stderr == (
        "error: the output cannot be written (No space left on device); free some space, or choose another folder, and "
        "run again\n"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/a.png"), "out/a.png cannot be written (No space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "out"), "out cannot be written (Disk quota exceeded)"),
        (OSError(errno.EROFS, "Read-only file system", "out"), "out: Read-only file system; check the path"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "out: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "x: File name too long"),
        (UnicodeEncodeError("utf-8", "a\udcff.png", 1, 2, "surrogates not allowed"), "'a\\udcff.png' has bytes that"),
    ],
)
def test_errors_of_the_system_are_one_line(error, message, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run_script(main)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("error", [ZeroDivisionError, BrokenPipeError, FileNotFoundError(2, "No", "a"), KeyError("a")])
def test_faults_of_the_program_keep_their_traceback(error):
    def main():
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        run_script(main)
