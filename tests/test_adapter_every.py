"""Adapters that a run writes on its way: each is a whole file of its own, and none replaces another run's."""

import dataclasses

import pytest

from qrlora.files import load, read_header, save
from qrlora.training import train
from test_training import opened, settings


def names(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["qr", "olora", "peft:loha"])
def test_an_adapter_on_the_way_is_the_file_that_a_run_of_so_many_steps_writes(tmp_path, method):
    """To the byte, at a constant rate; and the last one is what it is without."""
    base = opened("sdxl")
    train(settings(tmp_path, method=method, steps=4, output=tmp_path / "short.safetensors"), base=base)
    train(settings(tmp_path, method=method, steps=6, output=tmp_path / "plain.safetensors"), base=base)
    train(settings(tmp_path, method=method, steps=6, adapter_every=2), base=base)
    assert names(tmp_path) == [
        *("out-00002.safetensors", "out-00004.safetensors", "out.safetensors"),
        *("plain.safetensors", "short.safetensors"),
    ]
    content = {name: (tmp_path / f"{name}.safetensors").read_bytes() for name in ("out-00004", "short", "out", "plain")}
    assert content["out-00004"] == content["short"] and content["out"] == content["plain"]


def test_where_the_rate_falls_an_adapter_on_the_way_says_so_and_is_taken_for_no_other_run(tmp_path):
    base = opened("sdxl")
    config = settings(tmp_path, steps=4, adapter_every=2, lr_decay=1.0, overwrite=False)
    train(config, base=base)
    header = read_header(tmp_path / "out-00002.safetensors")
    assert (header.config["step"], header.config["steps"]) == (2, 4)
    for steps in (2, 4):
        with pytest.raises(FileExistsError):
            output = tmp_path / "out-00002.safetensors"
            train(dataclasses.replace(config, output=output, steps=steps, adapter_every=0), base=base)


def test_a_killed_run_writes_the_same_files_when_it_goes_on(tmp_path):
    """Killed after the update of an adapter, whose checkpoint is the one before or the same."""
    base = opened("sdxl")
    config = settings(tmp_path, adapter_every=2, overwrite=False)
    train(config, base=base)
    whole = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    for save_every in (1, 3):
        for name in whole:
            (tmp_path / name).unlink()

        def kill(progress):
            if progress.step == 4:
                raise Killed

        with pytest.raises(Killed):
            train(dataclasses.replace(config, save_every=save_every), base=base, on_step=kill)
        assert names(tmp_path) == ["out-00002.safetensors", "out-00004.safetensors"]
        train(dataclasses.replace(config, save_every=save_every), base=base)
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == whole


def test_an_adapter_on_the_way_replaces_no_file_of_another_run_unasked(tmp_path):
    base = opened("sdxl")
    config = settings(tmp_path, steps=3, adapter_every=2, overwrite=False)
    other = train(settings(tmp_path, method="lora", output=tmp_path / "other.safetensors"), base=base)
    save(other, tmp_path / "out-00002.safetensors")
    with pytest.raises(FileExistsError, match="out-00002.safetensors"):
        train(config, base=base, on_step=pytest.fail)
    assert load(tmp_path / "out-00002.safetensors").header.method == "lora"
    train(dataclasses.replace(config, overwrite=True), base=base)
    assert load(tmp_path / "out-00002.safetensors").header.method == "qr"
