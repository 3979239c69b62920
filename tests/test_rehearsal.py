"""A rehearsal tells what a training takes before it begins: held against real trainings of pico bases."""

import functools
import json

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pico
from commands import run
from qrlora.attach import begin
from qrlora.families import FAMILIES, open_base
from qrlora.families.blank import blank_base, blank_example
from qrlora.families.public import PUBLIC
from qrlora.methods import METHODS
from qrlora.rehearsal import CARDS, MARGIN, rehearse
from qrlora.rehearsal.blocks import kinds_of
from qrlora.rehearsal.live import Live, flash, start_on, step_bytes
from qrlora.training import denoising_loss
from qrlora.training.loop import NAME, recomputing
from qrlora.training.optimizers import OPTIMIZERS

HUB_SIZES = {  # numbers in the trainable part, as the hub's pages count them
    "sdxl": 2_567_463_684,
    "flux-dev": 11_901_408_320,
}

blank = functools.cache(blank_base)  # for tests that only look


@pytest.mark.parametrize(("name", "size"), HUB_SIZES.items())
def test_public_configurations_have_the_public_sizes(name, size):
    base, _, _ = blank(name)
    assert sum(p.numel() for p in base.model.parameters()) == size
    assert all(p.is_meta for p in base.model.parameters())


@pytest.mark.parametrize(
    ("name", "layers"), [("sdxl", 280), ("sd3-medium", 191), ("sd3.5-medium", 191), ("flux-dev", 342)]
)
def test_a_hub_name_is_the_short_name_and_has_the_papers_layers(name, layers):
    for spelling in (name, PUBLIC[name].hub):
        base, _, _ = blank(spelling)
        assert len(base.target_layers(base.defaults.targets)) == layers


def test_clip_and_t5_have_their_public_sizes():
    _, spare, _ = blank("flux-dev")
    assert spare["text_encoder"] == 123_060_480 and spare["text_encoder_2"] == 4_762_310_656


def real_peak(base, method, recomputed):
    """Most bytes alive beyond model and adapter in the second update of a real training on the CPU."""
    weights = dict(base.weights("attention" if base.family.name != "sdxl" else "self"))
    sides = {"input": 1, "output": 0}
    directions = {
        n: torch.randn(w.shape[sides[METHODS[method].side]], 4) if METHODS[method].side else None
        for n, w in weights.items()
    }
    starts = {n: METHODS[method].start(w, directions[n], 4, torch.Generator()) for n, w in weights.items()}
    parameters = begin(base.model, starts, NAME)
    shapes, _, words = blank_base(str(pico.folder(base.family.name)))
    clean, condition = blank_example(shapes, pico.SIZE, words, 1, "cpu")
    optimizer = OPTIMIZERS["adam"](parameters, 1e-4)
    time, noise = torch.tensor([500.0 if base.family.name != "sdxl" else 500]), torch.randn_like(clean)
    known = [*base.model.parameters(), *base.model.buffers(), clean, noise, *condition.tensors.values()]
    with recomputing(base.model, recomputed), Live(known) as live:
        for _ in range(2):
            denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition).backward()
            optimizer.step()
            optimizer.zero_grad()
    return live.peak


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("method", ["qr", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_counted_without_memory_is_that_of_the_real_update(family, method, recomputed):
    """A real update on the CPU against shapes alone: what a kernel takes for itself, and frees, is not counted. The
    margin that a need is told with covers the difference."""
    real = real_peak(open_base(pico.folder(family), "cpu"), method, recomputed)
    base, _, words = blank_base(str(pico.folder(family)))
    base.model.requires_grad_(False)
    learning = start_on(base, "attention" if family != "sdxl" else "self", method, 4)
    settings = {"resolution": pico.SIZE, "batch_size": 1, "gradient_checkpointing": recomputed}
    counted = step_bytes(base, learning, words, settings)
    assert counted == pytest.approx(real, rel=0.08) and MARGIN * counted >= real


def test_attention_counts_no_square_of_its_tokens():
    """Twice the tokens take twice the memory, in a forward and a backward pass that computes the forward again."""
    peaks = []
    for tokens in (512, 1024):
        x = torch.empty(1, 2, tokens, 8, device="meta", requires_grad=True)
        attention = lambda x: nn.functional.scaled_dot_product_attention(x, x, x)  # noqa: E731
        with torch.device("meta"), flash(), Live([x]) as live:
            checkpoint(attention, x, use_reentrant=False).sum().backward()
        peaks.append(live.peak)
    assert 1.9 < peaks[1] / peaks[0] < 2.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kinds_of_blocks_are_all_blocks_of_the_model(family):
    """Kinds times their counts hold as many numbers as the model's blocks: exactly, since it is a sum."""
    base, _, words = blank_base(str(pico.folder(family)))
    kinds = kinds_of(base, pico.SIZE, words)
    in_blocks = [m for m in base.model.modules() if type(m).__name__ in base.family.blocks]
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert sum(kind.count * count(kind.block) for kind in kinds) == sum(map(count, in_blocks))
    assert sum(kind.count for kind in kinds) == len(in_blocks)


def test_adapter_files_of_the_real_bases_are_as_small_as_promised():
    """At rank 64 in bfloat16, MB: FLUX.1-dev at most 360 and 180, SDXL's self-attention 86 and 43."""
    from qrlora.adapter import Header
    from qrlora.files import size_in_bytes

    for name, full, compact in (("flux-dev", 360, 180), ("sdxl", 86, 43)):
        base, _, _ = blank(name)
        shapes = {layer: tuple(weight.shape) for layer, weight in base.weights(base.defaults.targets)}
        header = Header(family=base.family.name, part=base.family.part, method="qr", rank=64)
        for content, most in (("full", full), ("compact", compact)):
            assert 0.98 * most < size_in_bytes(shapes, header, content, dtype=torch.bfloat16) / 1e6 < most


@pytest.mark.parametrize("family", FAMILIES)
def test_rehearse_prints_and_writes_what_a_base_takes(family, tmp_path, capsys):
    code, out, err = run(capsys, "rehearse", pico.folder(family), "--json", tmp_path / "r.json", "--device", "cpu")
    assert code == 0, err
    report = json.loads((tmp_path / "r.json").read_text())
    model = open_base(pico.folder(family), "cpu").model
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert report["weights"]["bfloat16"] == 2 * report["parameters"]
    assert min(report["seconds"].values()) > 0 and "Extrapolated" in out and f"{CARDS[0]} GB" in out
    assert report["weights"]["nf4"] < report["weights"]["int8"] < report["weights"]["bfloat16"]
    assert report["step"]["qr"]["recomputed"] <= report["step"]["qr"]["kept"]


def test_a_rehearsal_refuses_what_training_would():
    for wrong in ({"method": "qrr"}, {"dtype": "int8"}, {"resolution": 17}, {"targets": "nothing"}):
        with pytest.raises(ValueError):
            rehearse(str(pico.folder()), repeats=0, **wrong)
    with pytest.raises(FileNotFoundError, match="no local folder"):
        rehearse("nobody/nothing", repeats=0)


def test_quantised_bytes_are_those_of_linear_layers_in_blocks():
    """Of FLUX.1-dev, over 98 % of the numbers; of SDXL the convolutions stay as they are."""
    base, _, _ = blank("flux-dev")
    linear = sum(m.weight.numel() for m in base.model.modules() if isinstance(m, nn.Linear))
    assert linear > 0.98 * HUB_SIZES["flux-dev"]
