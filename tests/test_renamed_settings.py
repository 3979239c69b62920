"""Settings that were renamed keep working under their old names, with a deprecation, and files keep the first names."""

import dataclasses
import json

import pytest
import torch

import pico
from qrlora.adapter import Adapter, Header, Pair
from qrlora.comparison.method_specs import parse_method_spec
from qrlora.config import FamilyDefaults, TrainConfig, as_dict, as_stored_dict, read_recipe
from qrlora.config.renamed_settings import ADDED, RENAMED
from qrlora.families import open_base
from qrlora.sampling import generate, grid

VALUES = {"decay": 0.5, "times": "noisy"}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_of_a_setting_means_the_new_one_wherever_settings_are_written(old, tmp_path):
    """Recipe, override, Python call and attribute, method of a comparison, defaults of a base or a family."""
    new, value = RENAMED[old], VALUES[old]
    recipe, written = tmp_path / "run.toml", json.dumps(value)
    recipe.write_text(f"{old} = {written}\n")
    wanted = TrainConfig(**{new: value})
    spellings = {
        "recipe": lambda: read_recipe(recipe),
        "override": lambda: read_recipe(None, [f"{old}={value}"]),
        "Python call": lambda: TrainConfig(**{old: value}),
        "dataclasses.replace": lambda: dataclasses.replace(TrainConfig(), **{old: value}),
        "base folder": lambda: TrainConfig().filled(FamilyDefaults().with_base_defaults({"train": {old: value}})),
        "exception of a base folder": lambda: TrainConfig().filled(
            FamilyDefaults().with_base_defaults({"train": {"qr": {old: value}}})
        ),
    }
    for where, read in spellings.items():
        with pytest.warns(DeprecationWarning, match=f"the setting {old} is now {new}; the old name goes with 0.3"):
            config = read()
        assert getattr(config, new) == value, where
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(wanted, old) == value
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(FamilyDefaults(**{new: value}), old) == value
    with pytest.warns(DeprecationWarning, match=new):
        assert parse_method_spec(f"lora:style/{old}={value}").learn["style"][new] == value


def test_an_override_by_either_name_counts_more_than_the_recipe(tmp_path):
    recipe = tmp_path / "run.toml"
    recipe.write_text("lr_decay = 0.1\n")
    with pytest.warns(DeprecationWarning, match="lr_decay"):
        assert read_recipe(recipe, ["decay=0.2"]).lr_decay == 0.2
    recipe.write_text("decay = 0.1\n")
    with pytest.warns(DeprecationWarning, match="lr_decay"):
        assert read_recipe(recipe, ["lr_decay=0.2"]).lr_decay == 0.2


@pytest.mark.filterwarnings("ignore:the setting decay")
def test_a_recipe_or_base_with_one_setting_under_both_names_is_refused(tmp_path):
    recipe = tmp_path / "run.toml"
    recipe.write_text("decay = 0.1\nlr_decay = 0.2\n")
    message = "decay is the old name of lr_decay, and both are given: leave decay out"
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe)
    with pytest.raises(ValueError, match=message):
        FamilyDefaults().with_base_defaults({"train": {"decay": 0.1, "lr_decay": 0.2}})


def test_a_base_folder_of_the_first_edition_opens_with_a_deprecation(tmp_path):
    import shutil

    shutil.copytree(pico.folder(), tmp_path / "base")
    settings = {"defaults": {"train": {"decay": 0.25, "style": {"times": "noisy"}}}}
    (tmp_path / "base" / "qrlora.json").write_text(json.dumps(settings))
    with pytest.warns(DeprecationWarning) as caught:
        defaults = open_base(tmp_path / "base", "cpu").defaults
    assert len(caught) == 2 and defaults.lr_decay == 0.25
    assert defaults.for_run("style", "qr").timestep_sampling == "noisy"


def test_files_hold_settings_under_the_names_of_format_1():
    """Adapter headers and checkpoints that exist have these names; equal runs are known by them."""
    config = TrainConfig(image="x.png", lr_decay=0.5, timestep_sampling="noisy")
    stored = as_stored_dict(config)
    assert (stored["decay"], stored["times"]) == (0.5, "noisy")
    since = {name: as_dict(config)[name] for name in ADDED}
    assert not any(since.values()) and not since.keys() & stored.keys()  # settings that came later and are not set
    held = {**as_dict(config), "slot": 0}  # headers name the content's default slot, which a config leaves open
    assert list(stored.values()) == [value for name, value in held.items() if name not in ADDED]
    assert not RENAMED.keys() & as_dict(config).keys()


def test_a_header_s_part_is_its_component_and_keeps_its_name_in_files():
    with pytest.warns(DeprecationWarning, match="the header's entry part is now component; the old name goes with 0.3"):
        header = Header(**{"family": "sdxl", "part": "unet"})
    assert header == Header(family="sdxl", component="unet") == Header.from_json(header.to_json())
    with pytest.warns(DeprecationWarning, match="part is now component"):
        assert getattr(header, "part") == "unet"  # noqa: B009 - the type has no such name any more
    stored = json.loads(header.to_json())
    assert stored["part"] == "unet" and "component" not in stored
    with pytest.raises(ValueError, match="unknown entries: component"):
        Header.from_json(json.dumps({"format_version": 1, "component": "unet"}))


def test_on_picture_is_the_old_name_of_on_image():
    base, done = open_base(pico.folder("sd15"), "cpu"), []
    shapes = {name: layer.weight.shape for name, layer in base.target_layers("attention").items()}
    zeros = {name: Pair(torch.zeros(1, i), torch.zeros(o, 1)) for name, (o, i) in shapes.items()}
    content, style = (Adapter(zeros, Header(rank=1, role=role)) for role in ("content", "style"))
    old = {"on_picture": lambda k, total: done.append((k, total))}
    with pytest.warns(DeprecationWarning, match="on_picture is now on_image; the old name goes with 0.3"):
        generate(base, "a dog", steps=1, **old)
    with pytest.warns(DeprecationWarning, match="on_picture is now on_image"):
        grid(base, "a dog", content, style, [0.0], [1.0], steps=1, **old)
    assert done == [(1, 1), (1, 1)]
    with pytest.raises(TypeError, match="unexpected keyword argument 'on_pictures'"):
        grid(base, "a dog", content, style, [0.0], [1.0], **{"on_pictures": print})
