"""Descendants of SDXL and FLUX.1: the same layers, names and files as their ancestor, with targets of their own."""

import pytest

import pico
from loras import random_adapter
from qrlora.families.base_without_weights import blank_base
from qrlora.families.opening import open_base
from qrlora.files import load, save
from qrlora.layouts import VARIANTS
from qrlora.safetensors_files import read_safetensors

ANCESTORS = {
    "pony": "sdxl",
    "illustrious": "sdxl",
    "noobai-vpred": "sdxl",
    "flux-krea": "flux-dev",
    "flux-kontext": "flux-dev",
}


@pytest.mark.parametrize(("name", "ancestor"), ANCESTORS.items())
def test_a_descendant_has_its_ancestors_layers_and_defaults(name, ancestor):
    one, other = blank_base(name)[0], blank_base(ancestor)[0]
    assert one.family is other.family and one.defaults == other.defaults
    shapes = [{n: tuple(x.shape) for n, x in base.model.state_dict().items()} for base in (one, other)]
    assert shapes[0] == shapes[1]


def test_noobai_is_trained_on_velocities_down_to_pure_noise():
    noising = blank_base("noobai-vpred")[0].noising
    assert noising.name == "v_prediction" and blank_base("sdxl")[0].noising.name == "epsilon"
    clean, noise = pico.latents(open_base(pico.folder(), "cpu"), 2)
    last = blank_base("noobai-vpred")[0].noising.sample_time(1, None) * 0 + 999
    assert noising.add_noise(clean[None], noise[None], last).equal(noise[None])


@pytest.mark.parametrize(("name", "ancestor"), ANCESTORS.items())
def test_a_descendants_file_says_what_its_ancestors_says_and_is_read_back(name, ancestor, tmp_path):
    """By which tools sort it among those that fit."""
    family = blank_base(ancestor)[0].family.name
    said = []
    for base in (name, ancestor):
        adapter = random_adapter(pico.BASES[family](), family, base=VARIANTS[base].hub)
        save(adapter, tmp_path / "x.safetensors")
        metadata = read_safetensors(tmp_path / "x.safetensors")[1]
        said.append({x: metadata[x] for x in ("ss_base_model_version", "modelspec.architecture")})
        assert load(tmp_path / "x.safetensors").header.family == family
    assert said[0] == said[1]
