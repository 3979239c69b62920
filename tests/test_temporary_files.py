"""What a killed writer leaves is removed by the next; what a living one needs is not."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qrlora import temporary_files
from qrlora.output_files import atomic
from qrlora.temporary_files import remove_stale, temporary, temporary_folder

WRITER = """
import sys
from qrlora.output_files import atomic
with atomic(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
    file.write(b" and half")
"""


@pytest.fixture
def writer(tmp_path):
    """A process that is in the midst of writing `slow` in the folder."""
    words = [sys.executable, "-c", WRITER, str(tmp_path / "slow")]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_next_writer_in_a_folder_removes_what_a_killed_one_left(tmp_path, writer):
    writer.kill()
    writer.wait()
    (left,) = names(tmp_path)
    assert left.endswith(".partial")
    with atomic(tmp_path / "other") as file:
        file.write(b"whole")
    assert names(tmp_path) == ["other"]


def test_a_living_writer_is_left_alone_and_ends_whole(tmp_path, writer):
    with atomic(tmp_path / "other") as file:
        file.write(b"whole")
    remove_stale(tmp_path)
    assert len(names(tmp_path)) == 2
    writer.communicate()
    assert names(tmp_path) == ["other", "slow"] and (tmp_path / "slow").read_bytes() == b"half and half"


def test_writers_in_one_process_are_told_apart(tmp_path):
    with atomic(tmp_path / "a") as first, atomic(tmp_path / "b") as second:
        first.write(b"1")
        second.write(b"2")
    assert names(tmp_path) == ["a", "b"]


def test_files_of_others_stay(tmp_path):
    others = [".partial", "x.partial", ".x.partial", ".x.0123456.partial", ".x.safetensors.0123456g.partial", "x"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".folder.01234567.partial").mkdir()
    remove_stale(tmp_path)
    assert names(tmp_path) == sorted([*others, ".folder.01234567.partial"])
    remove_stale(tmp_path / "missing")


FOLDER = """
import sys
from qrlora.temporary_files import temporary_folder
with temporary_folder() as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_folder_of_a_dead_process_goes_when_the_next_is_made_and_a_living_ones_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, "TMPDIR": str(tmp_path)}}
    process = subprocess.Popen([sys.executable, "-c", FOLDER], text=True, **told)
    theirs = Path(process.stdout.readline().strip())
    with temporary_folder() as ours:
        assert theirs.is_dir() and ours.is_dir() and ours != theirs
    assert (theirs / "half").exists() and not ours.exists()
    process.kill()
    process.communicate()
    assert (theirs / "half").exists()
    with temporary_folder() as ours:
        assert [path for path in tmp_path.iterdir() if path.is_dir()] == [ours]
    assert not names(tmp_path)


def test_without_locks_files_are_written_and_nothing_is_removed(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / ".x.01234567.partial").write_text("whose?")
    monkeypatch.setattr(temporary_files.fcntl, "flock", unsupported)
    with atomic(tmp_path / "a") as file:
        file.write(b"1")
    monkeypatch.setattr(temporary_files, "fcntl", None)
    with atomic(tmp_path / "b") as file:
        file.write(b"2")
    assert names(tmp_path) == [".x.01234567.partial", "a", "b"]


@pytest.mark.parametrize("moment", ["before the lock", "while it is taken"])
def test_a_neighbour_who_clears_between_making_and_locking_costs_another_name_only(tmp_path, monkeypatch, moment):
    """Compared with a real neighbour's effect: the file is gone, or its lock is held for the moment."""
    real, calls = temporary_files.fcntl.flock, []

    def flock(file, how):
        calls.append(file)
        if len(calls) == 1:
            (path,) = tmp_path.iterdir()
            path.unlink()
            if moment == "while it is taken":
                raise BlockingIOError
        real(file, how)

    monkeypatch.setattr(temporary_files.fcntl, "flock", flock)
    with temporary(tmp_path / "a") as partial:
        assert partial.exists() and len(calls) == 2
        partial.replace(tmp_path / "a")
    assert names(tmp_path) == ["a"]
