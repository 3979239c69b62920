"""Files that people hold: written by an earlier version, read and written again to the same bytes."""

import shutil
from pathlib import Path

import pytest
import torch

from qrlora.files import load, read_header, save
from qrlora.merging import merge

FILES = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))


def test_there_is_a_file_of_each_kind():
    kinds = {(family, kind) for family in ("sdxl", "sd3", "flux") for kind in ("kohya", "diffusers", "lora", "merged")}
    assert {tuple(path.stem.split("-")) for path in FILES} == kinds


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_format_1_is_written_again_byte_for_byte(path, tmp_path):
    family, kind = path.stem.split("-")
    adapter = load(path)
    assert adapter.header == read_header(path) and adapter.header.family == family
    keys, dtype = kind if kind in ("kohya", "diffusers") else None, torch.bfloat16 if kind == "lora" else torch.float32
    save(adapter, tmp_path / path.name, keys=keys, dtype=dtype)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_kohyas_and_diffusers_file_hold_the_same_and_merge_to_the_stored_merge(family):
    files = {path.stem.partition("-")[2]: load(path) for path in FILES if path.stem.startswith(f"{family}-")}
    for layer, pair in files["kohya"].layers.items():
        other = files["diffusers"].layers[layer]
        assert torch.equal(pair.A, other.A) and torch.equal(pair.B, other.B)
    merged = merge([files["kohya"], files["lora"]], [1.0, 0.5], "stack")
    for layer in merged.layers:
        torch.testing.assert_close(merged.dense(layer), files["merged"].dense(layer))


def test_a_compact_file_is_read_with_the_directions_of_its_digest_and_written_again_byte_for_byte(
    tmp_path, monkeypatch
):
    """The cache of bases holds the frozen directions that such a file leaves out: its format is kept, too."""
    golden = Path(__file__).parent / "golden"
    (compact,) = (golden / "compact").glob("*.safetensors")
    monkeypatch.setenv("QRLORA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="the compact file's basis .* is not in"):
        load(compact)
    shutil.copytree(golden / "compact" / "bases", tmp_path / "cache" / "bases")
    adapter, full = load(compact), load(golden / "sdxl-kohya.safetensors")
    assert adapter.layers.keys() == full.layers.keys()
    for layer, pair in adapter.layers.items():
        assert torch.equal(pair.A, full.layers[layer].A) and torch.equal(pair.B, full.layers[layer].B)
    save(adapter, tmp_path / compact.name, content="compact")
    assert (tmp_path / compact.name).read_bytes() == compact.read_bytes()
