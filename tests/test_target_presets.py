"""Presets of targets by their old names: they choose the same layers for one more minor version, and say so."""

import json

import pytest
import torch

import pico
from qrlora.adapter import Adapter, Header, Pair
from qrlora.config import FamilyDefaults, TrainConfig, read_recipe
from qrlora.families import FAMILIES, open_base
from qrlora.files import load, save
from qrlora.layouts import DEPRECATED_PRESETS, LAYOUTS

OLD_AND_NEW = sorted(DEPRECATED_PRESETS.items())


HAVING = [(family, *names) for family in FAMILIES for names in OLD_AND_NEW if names[1] in LAYOUTS[family].targets]


@pytest.mark.parametrize(("family", "old", "new"), HAVING)
def test_an_old_name_of_a_preset_chooses_the_same_layers_of_every_backbone_that_has_it(family, old, new):
    base = open_base(pico.folder(family), "cpu")
    with pytest.warns(DeprecationWarning, match=f"targets={old} is now targets={new}; the old name goes with 0.3"):
        layers = base.target_layers(old)
    assert layers and list(layers) == list(base.target_layers(new))


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW)
def test_an_old_name_of_a_preset_works_in_calls_recipes_overrides_and_the_settings_of_a_base(tmp_path, old, new):
    (tmp_path / "recipe.toml").write_text(f'targets = "{old}"\n')
    with pytest.warns(DeprecationWarning, match=f"targets={old}"):
        assert TrainConfig(targets=old).targets == new
    with pytest.warns(DeprecationWarning, match=f"targets={old}"):
        assert read_recipe(tmp_path / "recipe.toml").targets == new
    with pytest.warns(DeprecationWarning, match=f"targets={old}"):
        assert read_recipe(None, [f"targets={old}"]).targets == new
    of_base = {"train": {"targets": old, "style": {"targets": old}}}
    before = json.dumps(of_base)
    with pytest.warns(DeprecationWarning, match=f"targets={old}"):
        defaults = FamilyDefaults().with_base_defaults(of_base)
    assert defaults.targets == defaults.for_run("style", "qr").targets == new and json.dumps(of_base) == before


def test_a_file_keeps_the_name_of_the_preset_that_it_was_trained_with(tmp_path):
    layers = {"transformer_blocks.0.attn.add_q_proj": Pair(torch.ones(1, 3), torch.ones(2, 1))}
    header = Header(family="sd3", component="transformer", method="lora", rank=1, targets="words")
    save(Adapter(layers, header), tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").header.targets == "words"


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_no_backbone_has_a_preset_by_an_old_name(layout):
    assert not layout.targets.keys() & DEPRECATED_PRESETS.keys()
