"""The directions of qr-contrast: what they are, what they are computed from, what they spare."""

import dataclasses

import pytest
import torch
from PIL import Image
from torch import nn

import pico
from qrlora.config import TrainConfig
from qrlora.contrastive_directions import (
    ROWS,
    WORK_SPACE,
    contrast_directions,
    contrasted,
    groups,
    moments,
    ordinary_prompts,
    reading,
    shared_inputs,
)
from qrlora.families import FAMILIES, open_base
from qrlora.families.base_without_weights import blank_base
from qrlora.injection.inject_adapter import inject
from qrlora.linalg import leading_subspace, principal_angles
from qrlora.merging import merge
from qrlora.training import train
from qrlora.training_example import Example, load_picture, prepare
from qrlora.world.ground_truth import true_image


def spectrum(size, seed):
    """A covariance (i, i), float64, whose energies fall by a factor of 10^4."""
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return U * torch.logspace(0, -4, size, dtype=torch.float64) @ U.T


def lesson(base, folder, **changes):
    """A config without None and its example, with ordinary prompts."""
    path = folder / "picture.png"
    true_image("robot", "plain").save(path)
    config = TrainConfig(image=path, prompt="a <c> in plain style", method="qr-contrast", **changes)
    config = config.filled(base.defaults)
    picture = load_picture(path, config.resolution)
    return config, prepare(base, picture, config.prompt, ordinary_prompts(config))


def test_contrast_directions_solve_the_generalised_eigenproblem():
    """Their span is that of the leading eigenvectors of C_u^-1 C_x, found by a general solver in float64."""
    own, usual, ridge = spectrum(24, 1), spectrum(24, 2), 1e-3
    dampened = usual + ridge * usual.trace() / 24 * torch.eye(24, dtype=torch.float64)
    values, vectors = torch.linalg.eig(torch.linalg.solve(dampened, own))
    leading = vectors.real[:, values.real.argsort(descending=True)[:6]]
    Q = contrast_directions(own.float(), usual.float(), 6, ridge)
    torch.testing.assert_close(Q.T @ Q, torch.eye(6), atol=1e-5, rtol=0)
    assert principal_angles(Q.double(), torch.linalg.qr(leading).Q).min() > 1 - 1e-6


def test_no_other_span_holds_as_much_of_the_lesson_in_units_of_the_ordinary():
    """tr((Q^T C_u Q)^-1 Q^T C_x Q) is largest; the leading directions of C_x and 50 random spans have less."""
    own, usual = spectrum(24, 1), spectrum(24, 2)
    dampened = usual + 1e-3 * usual.trace() / 24 * torch.eye(24, dtype=torch.float64)

    def held(Q):
        return float(torch.linalg.solve(Q.T @ dampened @ Q, Q.T @ own @ Q).trace())

    generator = torch.Generator().manual_seed(0)
    random = [torch.linalg.qr(torch.randn(24, 6, generator=generator, dtype=torch.float64)).Q for _ in range(50)]
    others = [*random, torch.linalg.eigh(own).eigenvectors[:, -6:]]
    assert held(contrast_directions(own, usual, 6).double()) > max(map(held, others))


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_the_mean_products_of_what_reaches_a_layer(family):
    """Against the rows themselves in float64, from a hook of the test's own."""
    base = open_base(pico.folder(family), "cpu")
    layers = list(base.target_layers("attention"))
    latents, condition = (
        torch.randn(1, 4, 8, 8),
        base.encode_prompt(["a dog", "a <c>"], base.framing((16, 16), (0, 0), (16, 16))),
    )
    rows = {layer: [] for layer in layers}
    handles = [
        base.model.get_submodule(layer).register_forward_hook(
            lambda _, x, __, layer=layer: rows[layer].append(x[0].flatten(0, -2).double())
        )
        for layer in layers
    ]
    found = moments(base, layers, latents, condition, "uniform", torch.Generator().manual_seed(3))
    for handle in handles:
        handle.remove()
    for layer in layers:
        wanted = torch.stack([x.T @ x / len(x) for x in rows[layer]]).mean(0)
        torch.testing.assert_close(found[layer].double(), wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_read_one_tensor_are_found(family):
    """All that read equal numbers, and no others: by the inputs of a pass, all of them kept."""
    base = open_base(pico.folder(family), "cpu")
    layers = list(base.target_layers("attention"))
    condition = base.encode_prompt(["a dog"], base.framing((16, 16), (0, 0), (16, 16)))
    leaders = shared_inputs(base, layers, Example(torch.randn(1, 4, 8, 8), condition), "uniform")
    inputs = {}
    with torch.no_grad(), reading(base.model, layers, lambda layer, x: inputs.__setitem__(layer, x.clone())):
        base.family.predict(base.model, torch.randn(1, 4, 8, 8), torch.tensor([500.0]), condition)
    for layer, leader in leaders.items():
        assert torch.equal(inputs[layer], inputs[leader])
    assert 1 < len(set(leaders.values())) < len(layers)


def test_a_group_of_layers_at_a_time_finds_the_same_directions(tmp_path, monkeypatch):
    base = open_base(pico.folder(), "cpu")
    config, example = lesson(base, tmp_path)
    at_once = contrasted(base, config, example)
    monkeypatch.setattr("qrlora.contrastive_directions.CPU_ROOM", 60e3)
    passes = []
    base.model.register_forward_hook(lambda *_: passes.append(1))
    grouped = contrasted(base, config, example)
    assert len(passes) > 1 + 2 * ROWS, "several groups"
    assert grouped.keys() == at_once.keys() and all(torch.equal(grouped[x], at_once[x]) for x in at_once)


def test_groups_take_no_more_memory_than_there_is():
    """Moments of FLUX.1-dev's layers, 57 GB of them, in 16 GB; a layer larger than all memory is still done."""
    base, _, _ = blank_base("flux-dev")
    sizes = {layer: linear.in_features for layer, linear in base.target_layers("attention-ff").items()}
    found = groups(sizes, 16e9)
    assert [layer for group in found for layer in group] == list(sizes)
    largest = max(sizes.values())
    for group in found:
        assert sum(8 * sizes[layer] ** 2 for layer in group) + WORK_SPACE * largest**2 <= 16e9
    assert groups({"a": 100, "b": 100}, 1) == [["a"], ["b"]]


@pytest.mark.parametrize(("role", "own", "other"), [("content", "<c>", "<s>"), ("style", "<s>", "<c>")])
def test_ordinary_prompts_hold_the_other_trigger_and_not_the_lessons(role, own, other):
    prompts = ordinary_prompts(TrainConfig(role=role))
    assert len(prompts) == ROWS and len(set(prompts)) == ROWS
    assert not any(own in prompt for prompt in prompts)
    assert sum(other in prompt for prompt in prompts) == ROWS // 3


def test_the_chosen_directions_hold_the_lesson_and_spare_a_prompt_that_is_none_of_the_ordinary(tmp_path):
    """In tiny-flux's layers of words: the share of an input's energy that Q takes, lesson against another prompt."""
    base = open_base("tiny-flux", "cpu")
    config, example = lesson(base, tmp_path, rank=8)
    chosen = contrasted(base, config, example)
    framing = base.framing((64, 64), (0, 0), (64, 64))
    noise, moment = torch.randn(example.latents.shape), torch.tensor([500.0])

    def share(Q, condition):
        parts = []

        def held(layer, x):
            parts.append((x @ Q[layer]).square().sum() / x.square().sum())

        with torch.no_grad(), reading(base.model, list(Q), held):
            base.family.predict(base.model, noise, moment, condition)
        return float(torch.stack(parts).mean())

    other = base.encode_prompt(["a dolphin in stencil style"], framing)
    leading = {layer: leading_subspace(weight, 8) for layer, weight in base.weights(config.targets)}
    contrast = share(chosen, example.condition) / share(chosen, other)
    assert contrast > 2 and contrast > 2 * share(leading, example.condition) / share(leading, other)


def test_equal_settings_give_equal_bytes_and_another_prompt_other_directions(tmp_path):
    base = open_base(pico.folder(), "cpu")
    noise = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "dog.png")
    files = {}
    for name, prompt in (("first", "a <c>"), ("again", "a <c>"), ("other", "a <c> in blue style")):
        path = tmp_path / f"{name}.safetensors"
        config = TrainConfig(image=tmp_path / "dog.png", prompt=prompt, method="qr-contrast", output=path, steps=2)
        files[name] = (train(config, base=base), path.read_bytes())
    assert files["first"][1] == files["again"][1]
    assert files["first"][0].header.basis != files["other"][0].header.basis


def test_adapters_of_two_spans_merge_by_stack_and_sum_says_so(tmp_path):
    """Stacked, the update is the sum of both, in float64; one basis for both would lose most of it."""
    base = open_base(pico.folder(), "cpu")
    noise = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "dog.png")
    both = [
        train(
            TrainConfig(
                image=tmp_path / "dog.png", role=role, prompt=prompt, method="qr-contrast", steps=3,
                output=tmp_path / f"{role}.safetensors",
            ),
            base=base,
        )
        for role, prompt in (("content", "a <c>"), ("style", "a dog in <s> style"))
    ]  # fmt: skip
    with pytest.raises(ValueError, match="merge with rule='stack'"):
        merge(both, (1, 1), "sum")
    merged = merge(both, (1, 1), "stack")
    for layer, pair in merged.layers.items():
        wanted = sum(x.layers[layer].B.double() @ x.layers[layer].A.double() for x in both)
        torch.testing.assert_close(pair.B.double() @ pair.A.double(), wanted)


def test_a_lone_model_has_no_lesson_to_choose_by():
    with pytest.raises(ValueError, match="a picture and a prompt"):
        inject(nn.Sequential(nn.Linear(8, 8)), "0", 2, "qr-contrast")


def test_rank_above_a_layer_is_refused_before_anything_long(tmp_path):
    base = open_base(pico.folder(), "cpu")
    config, _ = lesson(base, tmp_path)
    with pytest.raises(ValueError, match="rank 21 is above the smaller side"):
        train(dataclasses.replace(config, rank=21, output=tmp_path / "x.safetensors"), base=base)
