"""An estimate says what a training takes before it begins: held against real trainings of pico bases."""

import functools
import json
import math
import shutil

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pico
from commands import run
from qrlora.built_in_bases import built_in_bases, folder_of
from qrlora.config import TrainConfig
from qrlora.estimate import CARDS, MARGIN, RESERVED, estimate, estimate_training
from qrlora.estimate.memory_counting import LiveBytes, flash_attention, initialise_on_meta, step_bytes
from qrlora.estimate.time_blocks import block_kinds
from qrlora.estimate.training_task import TrainingTask
from qrlora.families import FAMILIES, SizeConditioning, open_base
from qrlora.families.base_without_weights import blank_base, blank_example, materialise_quantised
from qrlora.families.public_configs import PUBLIC
from qrlora.initialisation_methods import METHODS
from qrlora.injection import initialise
from qrlora.training import denoising_loss
from qrlora.training.optimizers import OPTIMIZERS
from qrlora.training.trainable_adapter import ADAPTER_NAME
from qrlora.training.training_loop import gradient_checkpointing

HUB_SIZES = {  # numbers in the trainable component, as the hub's pages count them
    "sdxl": 2_567_463_684,
    "flux-dev": 11_901_408_320,
    "sd15": 859_520_964,
    "sd21": 865_910_724,
    "qwen-image": 20_430_401_088,
    "z-image": 6_154_908_736,
    "wan2.1-1.3b": 1_418_996_800,
}

blank = functools.cache(blank_base)  # for tests that only look


@pytest.mark.parametrize(("name", "size"), HUB_SIZES.items())
def test_public_configurations_have_the_public_sizes(name, size):
    base, _, _ = blank(name)
    assert sum(p.numel() for p in base.model.parameters()) == size
    assert all(p.is_meta for p in base.model.parameters())


@pytest.mark.parametrize(
    ("name", "layers"),
    [("sdxl", 280), ("sd3-medium", 191), ("sd3.5-medium", 191), ("flux-dev", 342), ("sd15", 128), ("sd21", 128)]
    + [("qwen-image", 240), ("z-image", 136), ("flux2-klein-4b", 5 * 4 + 20 * 2), ("flux2-klein-9b", 8 * 4 + 24 * 2)]
    + [
        ("flux2-dev", 8 * 4 + 48 * 2),
        ("krea2-raw", 231),
        ("wan2.1-1.3b", 240),
        ("wan2.2-5b", 240),
        ("qwen-image-2.1", 128),
    ],
)
def test_a_hub_name_is_the_short_name_and_has_the_papers_layers(name, layers):
    for spelling in (name, PUBLIC[name].hub):
        base, _, _ = blank(spelling)
        assert len(base.target_layers(base.defaults.targets)) == layers


def test_clip_and_t5_have_their_public_sizes():
    _, spare, _ = blank("flux-dev")
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in spare.items()}
    assert sizes["text_encoder"] == 123_060_480 and sizes["text_encoder_2"] == 4_762_310_656


def task_of(family, **settings):
    """On a pico base without weights, with what training a rank of 4 takes."""
    base, _, tokens = blank_base(str(pico.folder(family)))
    base.model.requires_grad_(False)
    return TrainingTask(base, tokens, TrainConfig(batch_size=1, **settings).filled(base.defaults))


def real_peak(base, method, recomputed):
    """Most bytes alive beyond model and adapter in the second update of a real training on the CPU."""
    weights = dict(base.weights("attention" if base.family.name != "sdxl" else "self"))
    sides = {"input": 1, "output": 0}
    directions = {
        n: torch.randn(w.shape[sides[METHODS[method].side]], 4) if METHODS[method].side else None
        for n, w in weights.items()
    }
    starts = {n: METHODS[method].start(w, directions[n], 4, torch.Generator()) for n, w in weights.items()}
    parameters = initialise(base.model, starts, ADAPTER_NAME)
    shapes, _, tokens = blank_base(str(pico.folder(base.family.name)))
    clean, condition = blank_example(shapes, pico.side_of(base.family.name), tokens, 1, "cpu")
    optimizer = OPTIMIZERS["adam"](parameters, 1e-4)
    time, noise = base.noising.sample_time(1, None), torch.randn_like(clean)
    known = [*base.model.parameters(), *base.model.buffers(), clean, noise, *condition.tensors.values()]
    with gradient_checkpointing(base.model, recomputed), LiveBytes(known) as live:
        for _ in range(2):
            denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition).backward()
            optimizer.step()
            optimizer.zero_grad()
    return live.peak


@pytest.mark.parametrize(
    ("family", "method", "recomputed"),
    [*pico.in_turn(FAMILIES, ["qr", "lora"], [False, True, True, False]), ("sdxl", "lora", True)],
)
def test_memory_counted_without_memory_is_that_of_the_real_update(family, method, recomputed):
    """A real update on the CPU against shapes alone: what a kernel takes for itself, and frees, is not counted. The
    margin that a need is told with covers the difference."""
    real = real_peak(open_base(pico.folder(family), "cpu"), method, recomputed)
    task = task_of(family, method=method, targets="attention" if family != "sdxl" else "self")
    counted = step_bytes(task, initialise_on_meta(task), recomputed)
    assert counted == pytest.approx(real, rel=0.08) and MARGIN * counted >= real


def test_attention_counts_no_square_of_its_tokens():
    """Twice the tokens take twice the memory, in a forward and a backward pass that computes the forward again."""
    peaks = []
    for tokens in (512, 1024):
        x = torch.empty(1, 2, tokens, 8, device="meta", requires_grad=True)
        attention = lambda x: nn.functional.scaled_dot_product_attention(x, x, x)  # noqa: E731
        with torch.device("meta"), flash_attention(), LiveBytes([x]) as live:
            checkpoint(attention, x, use_reentrant=False).sum().backward()
        peaks.append(live.peak)
    assert 1.9 < peaks[1] / peaks[0] < 2.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kinds_of_blocks_are_all_blocks_of_the_model(family):
    """Kinds times their counts hold as many numbers as the model's blocks: exactly, since it is a sum."""
    task = task_of(family)
    kinds = block_kinds(task)
    in_blocks = [m for m in task.base.model.modules() if type(m).__name__ in task.base.family.block_classes]
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
        header = Header(family=base.family.name, component=base.family.component, method="qr", rank=64)
        for content, most in (("full", full), ("compact", compact)):
            assert 0.98 * most < size_in_bytes(shapes, header, content, dtype=torch.bfloat16) / 1e6 < most


@pytest.mark.parametrize(("family", "how"), pico.in_turn(FAMILIES, ["count", "blocks", "whole"]))
def test_estimate_prints_and_writes_what_a_base_takes(family, how, tmp_path, capsys):
    words = ("--run", how, "--steps", 1, "--device", "cpu", "--json", tmp_path / "r.json", "--gradient-checkpointing")
    code, out, err = run(capsys, "estimate", pico.folder(family), "--resolution", pico.side_of(family), *words)
    assert code == 0, err
    report = json.loads((tmp_path / "r.json").read_text())
    model = open_base(pico.folder(family), "cpu").model
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert f"{CARDS[0]} GB" in out
    assert report["weights"]["nf4"] < report["weights"]["int8"] < report["weights"]["bfloat16"]
    assert report["step"]["qr"]["recomputed"] <= report["step"]["qr"]["kept"]
    stages = {"whole": {"update", "merge", "denoising step"}, "blocks": {"update", "denoising step"}}.get(how)
    expected = {"qr": stages | {"basis"}, "lora": stages} if stages else {}
    assert {method: set(found) for method, found in report["stages"].items()} == expected
    assert all(0 < stage["seconds"] < math.inf for found in report["stages"].values() for stage in found.values())
    assert ("Measured" in out, "Extrapolated" in out) == (how == "whole", how == "blocks")


def stored_bytes(tensor):
    """Bytes of a tensor, of one that torchao has quantised those of the tensors in it."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    return sum(stored_bytes(getattr(tensor, name)) for name in names) if names else tensor.nbytes


@functools.cache
def counted_weights(family):
    """{dtype or quantisation: bytes} of a pico base, as an estimate counts them."""
    return estimate(str(pico.folder(family)), how="count", device="cpu", against="").weights


@pytest.mark.parametrize("quantize", ["", "int8", "float8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_that_are_counted_are_those_of_the_open_base(family, quantize):
    """To the byte, in bfloat16 and in 8 bits; 4 bits are compared where there is a GPU, gpu/emulated.py."""
    if quantize:
        pytest.importorskip("torchao")
    model = open_base(pico.folder(family), "cpu", "bfloat16", quantize).model
    assert counted_weights(family)[quantize or "bfloat16"] == sum(map(stored_bytes, model.parameters()))


def wide_sdxl(folder):
    """The configs, and nothing else, of a base like pico's with 50 million numbers in its UNet."""
    shutil.copytree(pico.folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "unet" / "config.json").read_text())
    changes = {"block_out_channels": [96, 192, 384], "attention_head_dim": [3, 6, 12], "norm_num_groups": 32}
    (folder / "unet" / "config.json").write_text(json.dumps({**config, **changes}))
    return str(folder)


def test_the_memory_of_the_whole_model_is_what_was_counted(tmp_path):
    """No second copy of the weights is made, and a need covers what the process takes; it has no files to read."""
    settings = {"dtype": "float32", "resolution": 64, "device": "cpu", "steps": 1}
    report = estimate(wide_sdxl(tmp_path / "wide"), how="whole", against="", **settings)
    assert report.weights["float32"] > 150e6
    counted, need = report.counted(*report.chosen, "qr"), report.need(*report.chosen, "qr")
    assert 0.9 * counted < report.stages["qr"]["update"].peak < min(1.5 * counted, need)


@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_a_quantised_base_is_run_whole(family):
    pytest.importorskip("torchao")
    settings = {"quantize": "int8", "device": "cpu", "steps": 1, "resolution": pico.SIZE}
    report = estimate(str(pico.folder(family)), how="whole", against="", **settings)
    assert report.chosen == ("int8", "kept") and report.stages["qr"]["update"].seconds > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_of_a_base_without_weights_are_quantised(family):
    pytest.importorskip("torchao")
    base, _, _ = blank_base(str(pico.folder(family)))
    nn.Module.to(base.model, torch.bfloat16)
    materialise_quantised(base, "int8", torch.device("cpu"))
    linear = [
        m for n, m in base.model.named_modules() if isinstance(m, nn.Linear) and not pico.kept_in_float32(base.model, n)
    ]
    assert all(layer.weight.qdata.dtype == torch.int8 for layer in linear)  # pyright: ignore
    assert not any(p.is_meta or p.requires_grad for p in base.model.parameters())
    layer, weight = next(iter(base.weights(base.defaults.targets)))
    assert weight.dtype == torch.bfloat16 and weight.shape == base.model.get_submodule(layer).weight.shape


def test_what_does_not_fit_is_said_and_extrapolated(monkeypatch, capsys):
    monkeypatch.setattr(estimate_training, "free_bytes", lambda device: int(RESERVED))
    code, out, _ = run(
        capsys, "estimate", pico.folder("flux"), "--resolution", pico.SIZE, "--steps", 1, "--device", "cpu"
    )
    assert code == 0 and "Extrapolated" in out and "Measured" not in out
    assert "The whole model was not run: the whole model needs 1.0 GB, cpu has 1.0 GB free." in out
    code, out, err = run(capsys, "estimate", pico.folder("flux"), "--run", "whole", "--device", "cpu")
    assert code == 2 and not out and err.count("error: ") == 1 and "'blocks' runs anywhere" in err


@pytest.mark.parametrize("name", [*FAMILIES, *built_in_bases()])
def test_a_blank_example_has_the_shapes_of_the_longest_prompt(name):
    """Prompts of the built-in bases are 16 tokens long, of others 77 and more; some families pad to that length."""
    folder = pico.folder(name) if name in FAMILIES else folder_of(name)
    base, (shapes, _, tokens) = open_base(folder, "cpu"), blank_base(str(folder))
    side = base.defaults.resolution
    _, condition = blank_example(shapes, side, tokens, 2, "meta")
    prompts = ["a dog" * 600, "a cat" * 600]
    if name == "qwen_image_21":  # it has no limit: these are as many tokens as are counted
        prompts = [" ".join([x] * 252) for x in ("a dog", "a cat")]
    real = base.encode_prompt(prompts, SizeConditioning.uncropped(side, side))
    assert {k: x.shape for k, x in condition.tensors.items()} == {k: x.shape for k, x in real.tensors.items()}


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("family", [*FAMILIES, "flux without guidance"])
def test_a_denoising_step_answers_as_many_rows_as_the_stock_pipeline_asks_for(family, guidance):
    folder = pico.folder("flux", guidance_embeds=False) if family.startswith("flux ") else pico.folder(family)
    base, rows = open_base(folder, "cpu"), []
    base.model.register_forward_pre_hook(
        lambda module, args, named: rows.append(len(args[0] if args else named["hidden_states"])), with_kwargs=True
    )
    base.sample(["a dog"], "", base.defaults.resolution, 3, guidance, [torch.Generator().manual_seed(0)])
    steps = len(base.pipe.scheduler.timesteps)  # 3, or 4 of PNDM, which asks twice in its first
    assert sum(rows) == steps * base.family.rows_per_step(base.pipe, guidance)


def test_an_estimate_refuses_what_training_would():
    refused = {"method": "qrr", "dtype": "int8", "resolution": 17, "targets": "nothing", "rank": 99, "steps": 0}
    for name, wrong in {**refused, "how": "all", "quantize": "int2"}.items():
        with pytest.raises(
            ValueError, match="16" if name == "resolution" else "rank 99" if name == "rank" else str(wrong)
        ):
            estimate(str(pico.folder("flux")), **{"how": "count", name: wrong})
    with pytest.raises(ValueError, match="nf4 needs a GPU with CUDA"):
        estimate(str(pico.folder("flux")), how="whole", quantize="nf4", device="cpu")
    for nothing in ("nobody/nothing", "sdxll"):
        with pytest.raises(FileNotFoundError, match=f"no base '{nothing}'.*nown by heart are sdxl, .*sd3-medium"):
            estimate(nothing, how="count")


def test_an_estimate_says_how_far_its_counting_is():
    stages = []
    estimate(str(pico.folder("flux")), how="count", device="cpu", on_stage=lambda *stage: stages.append(stage))
    assert [share for what, share in stages if what == "counting the memory of updates"] == [0, 0.25, 0.5, 0.75]
    assert [what for what, _ in stages][:2] == [
        "building the model without weights",
        "counting the memory of encoding and sampling",
    ]


def test_quantised_bytes_are_those_of_linear_layers_in_blocks():
    """Of FLUX.1-dev, over 98 % of the numbers; of SDXL the convolutions stay as they are."""
    base, _, _ = blank("flux-dev")
    linear = sum(m.weight.numel() for m in base.model.modules() if isinstance(m, nn.Linear))
    assert linear > 0.98 * HUB_SIZES["flux-dev"]
