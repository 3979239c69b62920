"""Files that are whole or absent."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qrlora.output_files import atomic
from qrlora.safetensors_files import (
    CHUNK_BYTES,
    places,
    read_metadata,
    read_rows,
    read_safetensors,
    word_sum,
    write_safetensors,
)

TENSORS = {"b": torch.randn(3, 5), "a": torch.randn(4).bfloat16(), "c": torch.arange(3), "empty": torch.zeros(0, 2)}


def test_what_is_written_is_what_the_library_reads(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", TENSORS, {"format": "pt", "b": "Größe"})
    stock = load_file(tmp_path / "x.safetensors")
    ours, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert metadata == read_metadata(tmp_path / "x.safetensors") == {"format": "pt", "b": "Größe"}
    for name, tensor in TENSORS.items():
        assert torch.equal(stock[name], tensor) and torch.equal(ours[name], tensor)


@pytest.mark.parametrize("size", [0, 5, 64, CHUNK_BYTES + 8 * 7 + 3])
def test_the_sum_of_words_is_that_of_numpy_and_sees_every_bit(tmp_path, size):
    data = bytearray(np.random.default_rng(0).bytes(size))
    padded = np.frombuffer(bytes(data) + bytes(-size % 8), np.uint64)
    (tmp_path / "x").write_bytes(data)
    found = word_sum(tmp_path / "x")
    assert found == int(padded.sum(dtype=np.uint64))
    for place in {0, size // 2, size - 1} & set(range(size)):
        changed = data.copy()
        changed[place] ^= 128
        (tmp_path / "x").write_bytes(changed)
        assert word_sum(tmp_path / "x") != found


def test_what_the_library_writes_is_read(tmp_path):
    save_file({"a": TENSORS["a"]}, tmp_path / "x.safetensors")
    tensors, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], TENSORS["a"]) and metadata == {}


def test_rows_are_read_alone_and_below_each_other(tmp_path):
    """Compared with the library's reading of the whole."""
    path, tensors = tmp_path / "x.safetensors", {"b": torch.randn(6, 5, 2), "c": torch.randn(7), "n": torch.arange(3)}
    tensors |= {kind: torch.randn(3, 4).to(getattr(torch, kind)) for kind in ("bfloat16", "float16", "float8_e4m3fn")}
    save_file(tensors, path, {"of": "somebody"})
    held, whole = places(path), load_file(path)
    assert held.keys() == whole.keys() and all(held[name].shape == whole[name].shape for name in whole)
    for name in set(whole) - {"n"}:
        assert torch.equal(read_rows(path, [(held[name], 0, len(whole[name]))]).float(), whole[name].float())
    b = held["b"]
    assert torch.equal(read_rows(path, [(b, 4, 6), (b, 1, 3)]), torch.cat([whole["b"][4:6], whole["b"][1:3]]))
    path.write_bytes(path.read_bytes()[: b.start + 5 * 10 * 4 - 1])
    assert torch.equal(read_rows(path, [(b, 3, 4)]), whole["b"][3:4])
    with pytest.raises(ValueError, match="x.safetensors ends before what its header promises"):
        read_rows(path, [(b, 3, 5)])


@pytest.mark.processes
def test_equal_content_gives_equal_bytes_in_every_process(tmp_path):
    script = (
        "import sys, torch; from qrlora.safetensors_files import write_safetensors; "
        "write_safetensors(sys.argv[1], {k: torch.ones(2) for k in 'zyx'}, {k: k for k in {'format', 'p', 'q', 'r'}})"
    )
    for name in "12":
        environment = {**os.environ, "PYTHONHASHSEED": name, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], check=True, env=environment)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_transposed_and_sliced_tensors_are_stored_as_they_look(tmp_path):
    wide = torch.randn(4, 6)
    write_safetensors(tmp_path / "x.safetensors", {"t": wide.T, "s": wide[:, 2:4]}, {})
    tensors, _ = read_safetensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["t"], wide.T) and torch.equal(tensors["s"], wide[:, 2:4])


def test_a_read_tensor_can_be_changed_without_changing_the_file(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(3)}, {})
    before = (tmp_path / "x.safetensors").read_bytes()
    read_safetensors(tmp_path / "x.safetensors")[0]["a"].add_(1)
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(6), "b": torch.ones(2, 3)}, {"format": "pt"})
    whole = (tmp_path / "x.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            read_safetensors(cut)
    cut.write_bytes(whole + b"x")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_safetensors(cut)


def test_a_pickle_is_refused_by_name_and_by_content(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    for name in ("x.pt", "disguised.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / "x.pt").read_bytes())
        with pytest.raises(ValueError, match="pickle"):
            read_safetensors(tmp_path / name)
    torch.save({"a": torch.ones(2)}, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="pickle"):
        read_safetensors(tmp_path / "old.safetensors")


def test_what_is_no_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "missing.safetensors")
    with pytest.raises(IsADirectoryError):
        read_safetensors(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_safetensors(tmp_path, {"a": torch.ones(2)}, {})


def test_no_space_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path, small_disk):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.ones(8)}, {})
    before = path.read_bytes()
    for target in (path, tmp_path / "new.safetensors"):
        with pytest.raises(OSError, match="nothing was written to.*safetensors"):
            write_safetensors(target, {"a": torch.ones(100_000)}, {})
    with pytest.raises(OSError, match="nothing was written to"), atomic(tmp_path / "y") as file:
        file.write(b"x" * 100_000)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "posix_fallocate"])
def test_a_disk_that_fills_up_late_leaves_nothing_behind(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left on device; nothing was written") as caught:
        write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(8)}, {})
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_a_file_system_that_cannot_reserve_space_is_written_to_all_the_same(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(8)}, {})
    assert torch.equal(read_safetensors(tmp_path / "x.safetensors")[0]["a"], torch.ones(8))


def test_ctrl_c_leaves_the_old_file(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "x") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a: torch.complex64 is not stored"):
        write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2, dtype=torch.complex64)}, {})


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="33 MB of names and metadata, above the 32 MB that are read back"):
        write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, {"long": "x" * 33_000_000})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_on_disk_is_neither_waited_for_nor_mapped(tmp_path, kind):
    path = tmp_path / "pipe"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/null")
    for read in (read_safetensors, read_metadata, places):
        with pytest.raises(OSError, match=f"{path}: no regular file; .* save it there first"):
            read(path)
