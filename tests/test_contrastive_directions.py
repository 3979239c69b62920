"""The frozen directions of qr-contrast: the eigenproblem, the second moments it is made of, the prompts it spares."""

import dataclasses

import pytest
import torch
from PIL import Image
from torch import nn

import pico
from qrlora.config import TrainConfig
from qrlora.contrastive_directions import (
    NUM_PROMPTS,
    SOLVER_BYTES_PER_ENTRY,
    compute_contrast_directions,
    generalised_eigenvectors,
    group_layers,
    input_hooks,
    input_moments,
    ordinary_prompts,
    shared_inputs,
)
from qrlora.families import FAMILIES, open_base
from qrlora.families.base_without_weights import blank_base
from qrlora.image_loading import load_image
from qrlora.injection.inject_adapter import inject
from qrlora.linalg import leading_subspace, principal_angles
from qrlora.merging import merge
from qrlora.training import train
from qrlora.training_example import TrainingExamples, encode_training_examples
from qrlora.world.ground_truth import true_image


def spectrum(size, seed):
    """A covariance (i, i), float64, whose eigenvalues fall by a factor of 10^4."""
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    return U * torch.logspace(0, -4, size, dtype=torch.float64) @ U.T


def training_example(base, folder, **changes):
    """A config without None and its example, with ordinary prompts."""
    path = folder / "picture.png"
    true_image("robot", "plain").save(path)
    config = TrainConfig(image=path, prompt="a <c> in plain style", method="qr-contrast", **changes)
    config = config.filled(base.defaults)
    picture = load_image(path, config.resolution)
    return config, encode_training_examples(base, [picture], [config.prompt], ordinary_prompts(config))


def test_contrast_directions_solve_the_generalised_eigenproblem():
    """Their span is that of the leading eigenvectors of C_u^-1 C_x, found by a general solver in float64."""
    own, usual, ridge = spectrum(24, 1), spectrum(24, 2), 1e-3
    dampened = usual + ridge * usual.trace() / 24 * torch.eye(24, dtype=torch.float64)
    values, vectors = torch.linalg.eig(torch.linalg.solve(dampened, own))
    leading = vectors.real[:, values.real.argsort(descending=True)[:6]]
    Q = generalised_eigenvectors(own.float(), usual.float(), 6, ridge)
    torch.testing.assert_close(Q.T @ Q, torch.eye(6), atol=1e-5, rtol=0)
    assert principal_angles(Q.double(), torch.linalg.qr(leading).Q).min() > 1 - 1e-6


def test_no_other_span_has_as_large_a_second_moment_of_x_relative_to_that_of_u():
    """tr((Q^T C_u Q)^-1 Q^T C_x Q) is largest; the leading directions of C_x and 50 random spans have less."""
    own, usual = spectrum(24, 1), spectrum(24, 2)
    dampened = usual + 1e-3 * usual.trace() / 24 * torch.eye(24, dtype=torch.float64)

    def held(Q):
        return float(torch.linalg.solve(Q.T @ dampened @ Q, Q.T @ own @ Q).trace())

    generator = torch.Generator().manual_seed(0)
    random = [torch.linalg.qr(torch.randn(24, 6, generator=generator, dtype=torch.float64)).Q for _ in range(50)]
    others = [*random, torch.linalg.eigh(own).eigenvectors[:, -6:]]
    assert held(generalised_eigenvectors(own, usual, 6).double()) > max(map(held, others))


@pytest.mark.parametrize("family", FAMILIES)
def test_input_moments_are_the_mean_outer_products_of_a_layers_inputs(family):
    """Against the rows themselves in float64, from a hook of the test's own."""
    base = open_base(pico.folder(family), "cpu")
    layers = list(base.target_layers("attention"))
    latents, condition = (
        pico.latents(base, 1),
        base.encode_prompt(["a dog", "a <c>"], base.size_conditioning((16, 16), (0, 0), (16, 16))),
    )
    rows = {layer: [] for layer in layers}
    handles = [
        base.model.get_submodule(layer).register_forward_hook(
            lambda _, x, __, layer=layer: rows[layer].append(x[0].flatten(0, -2).double())
        )
        for layer in layers
    ]
    found = input_moments(base, layers, latents, condition, "uniform", torch.Generator().manual_seed(3))
    for handle in handles:
        handle.remove()
    for layer in layers:
        wanted = torch.stack([x.T @ x / len(x) for x in rows[layer]]).mean(0)
        torch.testing.assert_close(found[layer].double(), wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_share_an_input_tensor_are_found(family):
    """All that read equal numbers, and no others: by the inputs of a pass, all of them kept."""
    base = open_base(pico.folder(family), "cpu")
    layers = list(base.target_layers("attention"))
    condition = base.encode_prompt(["a dog"], base.size_conditioning((16, 16), (0, 0), (16, 16)))
    first_readers = shared_inputs(base, layers, TrainingExamples(pico.latents(base, 1), condition), "uniform")
    inputs = {}
    with torch.no_grad(), input_hooks(base.model, layers, lambda layer, x: inputs.__setitem__(layer, x.clone())):
        base.family.predict(base.model, pico.latents(base, 1), torch.tensor([500.0]), condition)
    for layer, leader in first_readers.items():
        assert torch.equal(inputs[layer], inputs[leader])
    assert 1 < len(set(first_readers.values())) < len(layers)


def test_layers_done_in_groups_get_the_same_directions(tmp_path, monkeypatch):
    base = open_base(pico.folder(), "cpu")
    config, example = training_example(base, tmp_path)
    at_once = compute_contrast_directions(base, config, example)
    monkeypatch.setattr("qrlora.contrastive_directions.CPU_MOMENT_BYTES", 60e3)
    passes = []
    base.model.register_forward_hook(lambda *_: passes.append(1))
    grouped = compute_contrast_directions(base, config, example)
    assert len(passes) > 1 + 2 * NUM_PROMPTS, "several groups"
    assert grouped.keys() == at_once.keys() and all(torch.equal(grouped[x], at_once[x]) for x in at_once)


def test_groups_of_layers_take_no_more_memory_than_there_is():
    """Moments of FLUX.1-dev's layers, 57 GB of them, in 16 GB; a layer larger than all memory is still done."""
    base, _, _ = blank_base("flux-dev")
    sizes = {layer: linear.in_features for layer, linear in base.target_layers("attention-ff").items()}
    found = group_layers(sizes, 16e9)
    assert [layer for group in found for layer in group] == list(sizes)
    largest = max(sizes.values())
    for group in found:
        assert sum(8 * sizes[layer] ** 2 for layer in group) + SOLVER_BYTES_PER_ENTRY * largest**2 <= 16e9
    assert group_layers({"a": 100, "b": 100}, 1) == [["a"], ["b"]]


@pytest.mark.parametrize(("role", "own", "other"), [("content", "<c>", "<s>"), ("style", "<s>", "<c>")])
def test_ordinary_prompts_hold_the_other_trigger_and_not_the_training_prompts(role, own, other):
    prompts = ordinary_prompts(TrainConfig(role=role))
    assert len(prompts) == NUM_PROMPTS and len(set(prompts)) == NUM_PROMPTS
    assert not any(own in prompt for prompt in prompts)
    assert sum(other in prompt for prompt in prompts) == NUM_PROMPTS // 3


def test_contrast_directions_hold_the_training_prompts_inputs_more_than_those_of_an_unseen_prompt(tmp_path):
    """In tiny-flux's text-stream layers: the fraction of |x|^2 that Q holds, training prompt against another one."""
    base = open_base("tiny-flux", "cpu")
    config, example = training_example(base, tmp_path, rank=8)
    chosen = compute_contrast_directions(base, config, example)
    size_conditioning = base.size_conditioning((64, 64), (0, 0), (64, 64))
    noise, moment = torch.randn(example.latents.shape), torch.tensor([500.0])

    def share(Q, condition):
        parts = []

        def held(layer, x):
            parts.append((x @ Q[layer]).square().sum() / x.square().sum())

        with torch.no_grad(), input_hooks(base.model, list(Q), held):
            base.family.predict(base.model, noise, moment, condition)
        return float(torch.stack(parts).mean())

    other = base.encode_prompt(["a dolphin in stencil style"], size_conditioning)
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


def test_qr_contrast_is_refused_on_a_model_without_image_and_prompt():
    with pytest.raises(ValueError, match="a picture and a prompt"):
        inject(nn.Sequential(nn.Linear(8, 8)), "0", 2, "qr-contrast")


def test_rank_above_a_layer_is_refused_before_anything_long(tmp_path):
    base = open_base(pico.folder(), "cpu")
    config, _ = training_example(base, tmp_path)
    with pytest.raises(ValueError, match="rank 21 is above the smaller side"):
        train(dataclasses.replace(config, rank=21, output=tmp_path / "x.safetensors"), base=base)
