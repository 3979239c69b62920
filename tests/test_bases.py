"""`qrlora bases`: the public bases with what a person chooses by, and how much two bases share."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import pico
from commands import run
from qrlora.analysis import shared_span
from qrlora.basis import Weights
from qrlora.cli import open_for_sampling
from qrlora.estimate import estimate
from qrlora.families.base_without_weights import blank_base
from qrlora.families.public_configs import PUBLIC
from qrlora.files import read_header
from qrlora.layouts import LAYOUTS, VARIANTS


def test_every_public_base_is_listed_with_licence_size_card_and_use(capsys):
    code, out, _ = run(capsys, "bases")
    words = " ".join(out.split())
    assert code == 0
    for short, x in VARIANTS.items():
        assert short in words and x.licence and x.billions and x.card and x.good_for, short
        assert f"{x.billions:.2f} B" in words and f"{x.card} GB" in words
    for layout in LAYOUTS.values():
        assert all(preset in words for preset in layout.targets)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_size_in_the_list_is_the_models(name):
    base, _, _ = blank_base(name)
    billions = sum(x.numel() for x in base.model.parameters()) / 1e9
    assert VARIANTS[name].billions == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_card_in_the_list_is_the_estimates(name):
    report = estimate(name, how="count", against="")
    assert VARIANTS[name].card == report.fits("nf4", "recomputed", "qr")


def weights(**matrices):
    return Weights({name: tuple(x.shape) for name, x in matrices.items()}, matrices.__getitem__)


def test_a_base_shares_its_span_with_itself_and_half_of_it_with_one_that_turned_half_of_it():
    """Along the coordinate axes: directions 0 and 1 lead in the one, 0 and 2 in the other."""
    one, two = torch.diag(torch.tensor([4.0, 3.0, 1.0, 0.5])), torch.diag(torch.tensor([4.0, 1.0, 3.0, 0.5]))
    (same,) = shared_span(weights(a=one), weights(a=one), 2)
    assert (same.overlap, same.kept) == pytest.approx((1, 1))
    for side in ("input", "output"):
        (half,) = shared_span(weights(a=one), weights(a=two), 2, side)
        assert (half.overlap, half.kept) == pytest.approx((0.5, (4**2 + 1**2) / (4**2 + 3**2)))


def test_a_layer_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="a is .4, 4. in one base and .4, 3. in the other: an adapter of the one"):
        shared_span(weights(a=torch.eye(4)), weights(a=torch.eye(4)[:, :3]), 2)


def test_two_bases_are_compared_layer_by_layer(tmp_path, capsys):
    """A base that was trained on shares less where it was changed."""
    folder = tmp_path / "other"
    shutil.copytree(pico.folder("flux"), folder)
    (file,) = (folder / "transformer").glob("*.safetensors")
    tensors, changed = load_file(file), "transformer_blocks.0.attn.to_q.weight"
    tensors[changed] = torch.randn(tensors[changed].shape, generator=torch.Generator().manual_seed(0))
    save_file(tensors, file, metadata={"format": "pt"})
    code, out, err = run(capsys, "bases", pico.folder("flux"), folder, "--targets", "attention", "--rank", "4")
    assert code == 0, err
    first = next(line for line in out.splitlines() if "to_q" in line or "to_k" in line)
    assert changed.removesuffix(".weight") in first and "100.00%" not in first
    assert "100.00%" in next(line for line in out.splitlines() if "attn.to_k" in line)


def test_bases_of_two_families_and_one_base_alone_are_refused(capsys):
    code, _, err = run(capsys, "bases", pico.folder("flux"), pico.folder("sd3"))
    assert code == 2 and "is a flux base" in err and "no layer is shared" in err
    code, _, err = run(capsys, "bases", pico.folder("flux"))
    assert code == 2 and "give two bases to compare" in err


def test_an_adapter_is_drawn_with_the_base_that_its_training_named_and_so_is_a_merge_of_it(
    tmp_path, capsys, monkeypatch
):
    """Trained on one base, drawn with its sibling; --base wins, and a header without draw_with holds nothing of it."""
    Image.effect_noise((20, 20), 60).convert("RGB").save(tmp_path / "x.png")
    base, sibling = str(pico.folder("flux")), str(shutil.copytree(pico.folder("flux"), tmp_path / "sibling"))
    common = ["train", f"base={base}", f"image={tmp_path / 'x.png'}", "steps=1", "dtype=float32"]
    for name, more in {"one": [f"draw_with={sibling}"], "two": ["role=style", "prompt=a cat in <s> style"]}.items():
        code, _, err = run(capsys, *common, *more, f"output={tmp_path / name}.safetensors")
        assert code == 0, err
    one, two = (read_header(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert (one.base, one.config["draw_with"]) == (base, sibling) and "draw_with" not in two.config
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    assert run(capsys, "merge", *files, "-o", tmp_path / "both.safetensors")[0] == 0
    opened = []
    real = open_for_sampling.open_base
    monkeypatch.setattr(open_for_sampling, "open_base", lambda name, *how: opened.append(name) or real(name, *how))
    for words in ((files[0],), (tmp_path / "both.safetensors",), (files[1],), (files[0], "--base", base)):
        code, _, err = run(capsys, "generate", "a <c> in <s> style", *words, "--steps", 1, "-o", tmp_path / "i.png")
        assert code == 0, err
    assert opened == [sibling, sibling, base, base]
