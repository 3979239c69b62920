"""What a run does about the file that it writes: known again, never another's, never lost."""

import dataclasses
import errno
import json
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
from PIL import Image

import pico
from commands import run
from qrlora import output_files
from qrlora.basis import cache_folder
from qrlora.config import TrainConfig
from qrlora.families import open_base
from qrlora.files import load, read_header, save, save_adapter
from qrlora.training import train
from qrlora.training.config_checks import check_opening_settings
from test_training import picture, settings


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder(), "cpu")


def asked(folder, **changes):
    return settings(folder, **{"overwrite": False, "steps": 3, **changes})


def test_a_run_that_is_done_is_not_done_again(tmp_path, base):
    """Whatever says where it is done and what is seen of it; the adapter is the one that was learnt."""
    first = train(asked(tmp_path), base=base)
    before = (tmp_path / "out.safetensors").read_bytes()
    again = train(asked(tmp_path, save_every=1, gradient_checkpointing=True), base=base, on_step=pytest.fail)
    opened = train(asked(tmp_path), on_step=pytest.fail)
    assert again.header == opened.header == first.header and again.layers.keys() == first.layers.keys()
    train(asked(tmp_path, checkpoint_dir=str(picture(tmp_path) / "no folder")), base=base, on_step=pytest.fail)
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(picture(tmp_path), tmp_path / "elsewhere")
    train(asked(tmp_path, image=moved), base=base, on_step=pytest.fail)
    assert (tmp_path / "out.safetensors").read_bytes() == before
    assert load(tmp_path / "out.safetensors").header.config["run"] == first.header.config["run"]


DIFFERENT = {
    "another rank": {"rank": 3},
    "other steps": {"steps": 4},
    "another seed": {"seed": 1},
    "another prompt": {"prompt": "a <c> car"},
    "another method": {"method": "lora"},
    "another resolution": {"resolution": 24},
    "no steps named": {"steps": None},
}


@pytest.mark.parametrize("changes", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_a_run_stops_before_another_runs_file(tmp_path, base, changes):
    train(asked(tmp_path), base=base)
    before = (tmp_path / "out.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=r"is there already: --overwrite .*overwrite = true"):
        train(asked(tmp_path, **changes), base=base, on_step=pytest.fail)
    assert (tmp_path / "out.safetensors").read_bytes() == before
    adapter = train(asked(tmp_path, **changes, overwrite=True), base=base)
    assert read_header(tmp_path / "out.safetensors") == adapter.header


def test_a_run_on_another_picture_or_base_of_the_same_name_stops(tmp_path, base):
    train(asked(tmp_path), base=base)
    Image.new("RGB", (20, 24), "red").save(picture(tmp_path))
    with pytest.raises(FileExistsError):
        train(asked(tmp_path), base=base)
    picture(tmp_path).unlink()
    changed = open_base(pico.folder(), "cpu")
    next(iter(changed.target_layers("self").values())).weight.data[0, 0] += 1e-3
    with pytest.raises(FileExistsError):
        train(asked(tmp_path), base=changed)
    assert train(asked(tmp_path), base=base, on_step=pytest.fail)


@pytest.mark.parametrize("kind", ["of before", "of another tool", "a text"])
def test_a_file_that_does_not_say_which_run_it_is_of_is_not_replaced(tmp_path, base, kind):
    """As those of qrlora 0.1.0; refused before the base is opened."""
    path = tmp_path / "out.safetensors"
    if kind == "a text":
        path.write_text("notes")
    else:
        adapter = train(asked(tmp_path), base=base)
        config = {name: value for name, value in adapter.header.config.items() if name != "run"}
        save(dataclasses.replace(adapter, header=dataclasses.replace(adapter.header, config=config)), path)
        if kind == "of another tool":
            from safetensors.torch import load_file, save_file

            save_file(load_file(path), path)
    before, stages = path.read_bytes(), []
    with pytest.raises(FileExistsError):
        train(asked(tmp_path), on_stage=lambda what, _: stages.append(what))
    assert path.read_bytes() == before and stages == []


def test_what_a_run_was_killed_before_removing_goes_when_it_is_asked_for_again(tmp_path, base, monkeypatch):
    """Its adapter is written, its checkpoint is still there."""
    config = asked(tmp_path, save_every=1)

    def killed(*_):
        raise RuntimeError("as if the power had failed")

    with monkeypatch.context() as patch:
        patch.setattr("qrlora.training.checkpoint.remove_checkpoint", killed)
        with pytest.raises(RuntimeError):
            train(config, base=base)
    assert config.checkpoints.is_dir() and (tmp_path / "out.safetensors").is_file()
    train(config, base=base, on_step=pytest.fail)
    assert not config.checkpoints.exists()


def test_what_was_learnt_is_kept_beside_the_checkpoint_in_the_cache_or_among_temporary_files(
    tmp_path, base, monkeypatch
):
    """The first that takes it, with the same bytes; the message says which."""
    train(asked(tmp_path, output=tmp_path / "whole.safetensors"), base=base)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("QRLORA_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "disk" / "out.safetensors"
    places = [out.with_suffix(".checkpoint"), cache_folder().parent, tmp_path / "temporary"]
    full = [out.parent / "out.safetensors"]
    real = save_adapter.safetensors_files.write_safetensors

    def write(path, *rest):
        if any(Path(path) == place or place in Path(path).parents for place in full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, *rest)

    monkeypatch.setattr(save_adapter.safetensors_files, "write_safetensors", write)
    for place in places:
        with pytest.raises(OSError, match="No space left on device; what was made is kept as") as caught:
            train(asked(tmp_path, output=out), base=base)
        kept = Path(re.search(r"kept as (\S+\.safetensors)", str(caught.value))[1])
        assert caught.value.filename == str(out)
        assert kept == place / "out.safetensors" and kept.read_bytes() == whole
        assert not out.exists()
        full.append(place)
    with pytest.raises(OSError, match="No space left on device") as caught:
        train(asked(tmp_path, output=out), base=base)
    assert "what was made" not in str(caught.value)


def test_a_file_that_appears_while_a_run_learns_is_not_replaced_by_it(tmp_path, base):
    """Two runs of different settings, one output: the second to end keeps its adapter beside its checkpoint."""
    path = tmp_path / "out.safetensors"
    with pytest.raises(OSError, match="is there already.* what was made is kept as"):
        train(asked(tmp_path), base=base, on_step=lambda _: path.write_text("another run's"))
    assert path.read_text() == "another run's"
    kept = load(tmp_path / "out.checkpoint" / "out.safetensors")
    path.unlink()
    assert train(asked(tmp_path), base=base).header == kept.header


def test_too_little_space_for_the_adapter_is_said_before_anything_is_learnt(tmp_path, base, monkeypatch):
    """Its size is known from the layers: that of the file, but for what the header says of the run."""
    claimed, stages = [], []
    monkeypatch.setattr(os, "posix_fallocate", lambda _, __, size: claimed.append(size))
    train(asked(tmp_path, method="qr-direct"), base=base)
    size = (tmp_path / "out.safetensors").stat().st_size
    assert any(0.9 * size < x < size for x in claimed[:-1]) and claimed[-1] == size

    def full(_, __, wanted):
        if wanted not in (output_files.MIN_FREE_BYTES,):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"out.safetensors") as caught:
        train(asked(tmp_path, overwrite=True), base=base, on_stage=lambda what, _: stages.append(what))
    assert caught.value.errno == errno.ENOSPC and "finding the leading directions" not in stages


@pytest.mark.parametrize("where", ["checkpoint_dir", "tensorboard"])
def test_a_checkpoint_or_log_that_cannot_be_written_is_refused_before_the_base_is_opened(tmp_path, where):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "out.tensorboard").write_text("no folder")
    changes = {"checkpoint_dir": tmp_path / "file" / "kept"} if where == "checkpoint_dir" else {"tensorboard": True}
    stages = []
    with pytest.raises(NotADirectoryError, match="is no folder"):
        train(asked(tmp_path, **changes), on_stage=lambda what, _: stages.append(what))
    assert stages == [] and not (tmp_path / "out.safetensors").exists()


def test_a_training_goes_on_without_a_cache_that_cannot_be_written(tmp_path, base, monkeypatch):
    train(asked(tmp_path, output=tmp_path / "whole.safetensors"), base=base)
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("QRLORA_CACHE", str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="directions are computed at every start: set QRLORA_CACHE") as caught:
        train(asked(tmp_path), base=base)
    assert len(caught) == 1
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def command(folder, *more):
    words = [f"image={picture(folder)}", f"base={pico.folder()}", f"output={folder / 'out.safetensors'}", "device=cpu"]
    return ["train", *words, "steps=2", "preview_every=1", *more]


def test_previews_replace_those_of_their_own_run_only(tmp_path, capsys, base):
    """A run that is stopped draws some again; a picture of somebody's is left, and the preview numbered."""
    (tmp_path / "out-00002.png").write_bytes(b"somebody's")
    for _ in range(2):
        code, _, err = run(capsys, *command(tmp_path))
        assert code == 0, err
        (tmp_path / "out.safetensors").unlink()
        names = {path.name for path in tmp_path.glob("out-*")} - {"out-00002_3.png"}
        assert names == {"out-00001.png", "out-00002.png", "out-00002_2.png"}
    assert (tmp_path / "out-00002.png").read_bytes() == b"somebody's"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux tells which file a descriptor is")
def test_a_preview_that_cannot_be_written_does_not_end_a_training(tmp_path, capsys, monkeypatch):
    real = os.fsync

    def full(file):
        if "out-00001.png" in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = run(capsys, *command(tmp_path))
    assert "the training goes on without this preview" in " ".join(err.split())
    assert code == 0 and (tmp_path / "out.safetensors").is_file() and (tmp_path / "out-00002.png").is_file(), err


def test_overwriting_is_asked_for_by_option_setting_or_recipe(tmp_path, capsys):
    recipe = tmp_path / "run.toml"
    for changes in ([], ["--overwrite"], ["overwrite=true"], [recipe]):
        recipe.write_text("overwrite = true\n")
        (tmp_path / "out.safetensors").write_text("somebody's")
        code, _, err = run(capsys, *command(tmp_path, "preview_every=0", *changes))
        assert code == (0 if changes else 2), err
        told = (tmp_path / "out.safetensors").read_bytes() == b"somebody's"
        assert told == (not changes) and ("overwrite = true" in err) == (not changes)
    config = read_header(tmp_path / "out.safetensors").config
    assert "overwrite" not in config and json.dumps(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope", "draw_with=nope: neither a built-in name, a file or folder, nor a hub's OWNER/NAME"),
        ("tiny-fluxx", "did you mean 'tiny-flux'"),
        (".", "no diffusers pipeline, it has no model_index.json"),
        ("pico-sd15", "is a sd15 base, .* is of sdxl: an adapter fits bases of the same layers alone"),
    ],
)
def test_a_base_to_draw_with_that_is_none_or_has_other_layers_is_refused(tmp_path, name, message):
    name = str(pico.folder("sd15")) if name == "pico-sd15" else name
    with pytest.raises((ValueError, OSError), match=message) as caught:
        train(settings(tmp_path, draw_with=name))
    assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "name, same, other",
    [("me/base", "main", "v2"), ("me/base@v2", "v2", "main"), ("me/base@xv2", "xv2", "v2"), ("/me/base", "", "main")],
)
def test_a_revision_of_an_open_base_is_taken_if_it_is_the_one_that_is_open(base, name, same, other):
    """A hub's name without a revision is the one of its main branch; a folder has none."""
    named = dataclasses.replace(base, name=name)
    check_opening_settings(TrainConfig(revision=same), named)
    with pytest.raises(ValueError, match=f"revision={other} say how a base is opened"):
        check_opening_settings(TrainConfig(revision=other), named)


def test_a_header_says_of_an_open_base_what_it_is(tmp_path):
    base = open_base(pico.folder("flux"), "cpu")
    for wrong in (
        {"dtype": "bfloat16"},
        {"quantize": "int8"},
        {"offload": True},
        {"revision": "v2"},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong.values()))}.* say how a base is opened, .* in float32"):
            train(settings(tmp_path, **wrong), base=base)
    train(settings(tmp_path, steps=1), base=base)  # the settings name another
    header = read_header(tmp_path / "out.safetensors")
    assert header.base == header.config["base"] == str(pico.folder("flux")) and header.config["dtype"] == "float32"
