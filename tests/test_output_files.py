"""Outputs: nothing is lost, nothing is replaced unasked, on whatever file system."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from qrlora import output_files
from qrlora.output_files import atomic, check_writable


def refusing(monkeypatch, name, number, when=lambda *_: True):
    """A function of `os` that raises an error number where `when` says so."""
    real = getattr(os, name)

    def act(*arguments, **names):
        if when(*arguments):
            raise OSError(number, os.strerror(number), str(arguments[0]))
        return real(*arguments, **names)

    monkeypatch.setattr(os, name, act)


def over_a_file(_, target):
    return os.path.lexists(target)


FILE_SYSTEMS = {  # what some refuse: {function of os: error number}, and whether only over a file that is there
    "local": ({}, False),
    "no fsync (FUSE)": ({"fsync": errno.ENOSYS}, False),
    "no fsync (CIFS)": ({"fsync": errno.EINVAL}, False),
    "no fsync (NFS)": ({"fsync": errno.EOPNOTSUPP}, False),
    "no renaming over a file (FAT)": ({"replace": errno.EEXIST, "rename": errno.EEXIST}, True),
    "no renaming over a file (sshfs)": ({"replace": errno.EPERM, "rename": errno.EPERM}, True),
    "no renaming over a file (SMB)": ({"replace": errno.EACCES, "rename": errno.EACCES}, True),
    "no renaming (buckets)": ({"replace": errno.ENOSYS, "rename": errno.ENOSYS, "fsync": errno.ENOSYS}, False),
    "no replacing (a mounted file)": ({"replace": errno.EBUSY, "rename": errno.EBUSY}, False),
    "no reserving": ({"posix_fallocate": errno.EOPNOTSUPP}, False),
}


@pytest.mark.parametrize("old", [None, b"what was there before"])
@pytest.mark.parametrize(("refused", "only_over"), FILE_SYSTEMS.values(), ids=FILE_SYSTEMS.keys())
def test_every_file_system_is_written_to_and_nothing_is_left_beside(tmp_path, monkeypatch, refused, only_over, old):
    for name, number in refused.items():
        refusing(monkeypatch, name, number, over_a_file if only_over else lambda *_: True)
    path = tmp_path / "x.bin"
    if old is not None:
        path.write_bytes(old)
    check_writable(path, overwrite=True)
    assert [x.name for x in tmp_path.iterdir()] == ([] if old is None else ["x.bin"])
    with atomic(path) as file:
        output_files.reserve_space(file, 3)
        file.write(b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ends", ["there too", "with the disk"])
def test_where_the_new_content_does_not_fit_in_place_the_old_is_there_again(tmp_path, monkeypatch, ends):
    """No file can be renamed, and the disk fills while the content is copied; if it stays full, the old is told."""
    for name in ("replace", "rename"):
        refusing(monkeypatch, name, errno.ENOSYS)
    path, copied = tmp_path / "x.bin", []
    path.write_bytes(b"old")
    real = shutil.copyfileobj

    def filling(source, target):
        copied.append(Path(target.name).name)
        if copied.count("x.bin") == 1 or (ends == "with the disk" and copied.count("x.bin") == 2):
            if copied[-1] == "x.bin":
                target.write(b"?")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(shutil, "copyfileobj", filling)
    with pytest.raises(OSError) as caught, atomic(path) as file:
        file.write(b"new content")
    kept = [x for x in tmp_path.iterdir() if x != path]
    if ends == "there too":
        assert path.read_bytes() == b"old" and not kept
    else:
        assert kept[0].read_bytes() == b"old" and str(kept[0]) in str(caught.value)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace", "posix_fallocate"])
def test_what_is_an_error_on_every_file_system_leaves_the_old_file(tmp_path, monkeypatch, call, number):
    refusing(monkeypatch, call, number)
    (tmp_path / "x").write_text("old")
    with pytest.raises(OSError, match="nothing was written to") as caught, atomic(tmp_path / "x") as file:
        output_files.reserve_space(file, 3)
        file.write(b"new")
    assert caught.value.errno == number
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("old", [True, False], ids=["a file", "nothing yet"])
@pytest.mark.parametrize("target", ["elsewhere/real.bin", "../../elsewhere/real.bin"])
def test_a_linked_output_keeps_its_link_and_replaces_its_target(tmp_path, old, target):
    """Also through two links, one of them of a folder, and a link whose target is not there yet."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    real = tmp_path / "elsewhere" / "real.bin"
    if old:
        real.write_bytes(b"old")
    link = tmp_path / "a" / "b" / "link.bin"
    link.symlink_to(Path(target) if target.startswith("..") else tmp_path / target)
    (tmp_path / "short").symlink_to(tmp_path / "a" / "b")
    with atomic(tmp_path / "short" / "link.bin") as file:
        file.write(b"new")
    assert link.is_symlink() and real.read_bytes() == b"new" and len(list(real.parent.iterdir())) == 1


def in_the_way(folder):
    """{what: (path, words of the message)} of outputs that cannot be written."""
    (folder / "file").write_text("a file")
    (folder / "shut").mkdir()
    (folder / "shut").chmod(0o555)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe.bin")
    return {
        "the folder is a file": (folder / "file" / "x.bin", "is no folder"),
        "a folder above is a file": (folder / "file" / "a" / "b" / "x.bin", "is no folder"),
        "the folder is read-only": (folder / "shut" / "x.bin", "Permission denied"),
        "a folder above is read-only": (folder / "shut" / "a" / "b" / "x.bin", "Permission denied"),
        "it is a folder": (folder / "shut", "is a folder"),
        "it is a pipe": (folder / "pipe.bin", "is no ordinary file"),
        "the folder is a link to itself": (folder / "loop" / "x.bin", "."),
        "it is a link to itself": (folder / "loop", "."),
        "the name is too long": (folder / ("x" * 300 + ".bin"), "too long"),
        "the name is too long while it is written": (folder / ("x" * 250 + ".bin"), "too long"),
        "the system makes no files here": (Path("/proc/x.bin"), "."),
    }


def test_an_output_that_cannot_be_written_is_refused_beforehand_and_leaves_nothing(tmp_path, permissions_count):
    cases = in_the_way(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for what, (path, message) in cases.items():
        for attempt in (lambda path: check_writable(path, overwrite=True), lambda path: atomic(path).__enter__()):
            with pytest.raises(OSError, match=message) as caught:
                attempt(path)
            assert caught.value.filename == str(path), what
    assert sorted(tmp_path.rglob("*")) == before


def test_folders_that_were_made_for_a_file_go_with_it(tmp_path):
    """`check_writable` leaves none, an error neither; one that somebody else has used meanwhile stays."""
    check_writable(tmp_path / "a" / "b" / "x.bin")
    assert not list(tmp_path.iterdir())
    for used in (False, True):
        with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "a" / "b" / "x.bin") as file:
            if used:
                (tmp_path / "a" / "other").touch()
            file.write(b"half")
            raise KeyboardInterrupt
        assert sorted(x.name for x in tmp_path.rglob("*")) == (["a", "other"] if used else [])
    with atomic(tmp_path / "a" / "b" / "x.bin") as file:
        file.write(b"whole")
    assert (tmp_path / "a" / "b" / "x.bin").read_bytes() == b"whole"


def test_a_size_that_does_not_fit_is_refused_beforehand(tmp_path, small_disk, monkeypatch):
    """By the system, and by the count of free bytes where it cannot reserve."""
    check_writable(tmp_path / "x", size=65536)
    with pytest.raises(OSError, match="nothing was written to"):
        check_writable(tmp_path / "x", size=65537)
    monkeypatch.delattr(os, "posix_fallocate")
    check_writable(tmp_path / "x", size=65537)
    size = shutil.disk_usage(tmp_path).free + 10**9
    with pytest.raises(OSError, match=r"No space left on device \([\d.]+ MB needed, [\d.]+ MB free\)"):
        check_writable(tmp_path / "x", size=size)
    assert not list(tmp_path.iterdir())


def test_a_file_that_may_not_be_replaced_stays_even_if_it_appears_while_another_is_written(tmp_path):
    path = tmp_path / "x.bin"
    with pytest.raises(FileExistsError, match="is there already: --overwrite"), atomic(path, overwrite=False) as file:
        path.write_bytes(b"another run's")
        file.write(b"ours")
    with pytest.raises(FileExistsError):
        check_writable(path)
    assert path.read_bytes() == b"another run's" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("hard_links", [True, False])
def test_of_writers_that_end_at_one_moment_one_is_whole_and_the_others_are_told(tmp_path, monkeypatch, hard_links):
    """Without hard links only those that end one after another can be told."""

    def refused(*_):
        raise PermissionError(errno.EPERM, "no hard links here")

    if not hard_links:
        monkeypatch.setattr(os, "link", refused)
    count = 8 if hard_links else 1
    for turn in range(20):
        path, together, told = tmp_path / f"{turn}.bin", threading.Barrier(count), []

        def write(content, path=path, together=together, told=told):
            try:
                with atomic(path, overwrite=False) as file:
                    file.write(content)
                    together.wait()
            except FileExistsError as error:
                told.append(str(error))

        writers = [threading.Thread(target=write, args=[bytes([k]) * 4096]) for k in range(count)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        if not hard_links:
            write(b"x" * 4096)
        content = path.read_bytes()
        assert len(told) == len(writers) - 1 + (not hard_links) and len(content) == 4096 and len(set(content)) == 1
        assert all("--overwrite" in line for line in told)
    assert len(list(tmp_path.iterdir())) == 20


def test_a_result_that_cannot_be_written_is_kept_where_writing_works(tmp_path, permissions_count):
    """In the first folder that takes it, beside what was kept there before; the message says where."""
    in_the_way(tmp_path)
    places = [tmp_path / "shut", tmp_path / "file" / "a", tmp_path / "kept"]

    def write(path):
        with atomic(path, overwrite=False) as file:
            file.write(b"hours of work")

    for name in ("x.bin", "x_2.bin"):
        with pytest.raises(OSError, match=f"Permission denied; .*kept as .*{name}") as caught:
            output_files.write_or_rescue(write, tmp_path / "shut" / "x.bin", places)
        assert caught.value.filename == str(tmp_path / "shut" / "x.bin")
        assert (tmp_path / "kept" / name).read_bytes() == b"hours of work"
    with pytest.raises(OSError, match="Permission denied; nothing was written to"):
        output_files.write_or_rescue(write, tmp_path / "shut" / "x.bin", places[:2])
