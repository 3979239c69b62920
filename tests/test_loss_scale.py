"""Training beside a float16 base: gradients that neither vanish nor overflow, and runs that go on with their scale."""

import json
from functools import partial

import pytest
import torch
from torch.nn.functional import cosine_similarity

import pico
from qrlora.families import FAMILIES, open_base
from qrlora.files import load
from qrlora.safetensors_files import read_metadata
from qrlora.training import optimizers, train, training_loop
from qrlora.training.loss_scale import LossScale
from test_training import settings


class Seen(torch.optim.SGD):
    """Learns nothing and keeps the gradients that it is given."""

    def __init__(self, kept, parameters, rate):
        super().__init__(parameters, lr=0.0)
        self.kept = kept

    def step(self, closure=None):
        self.kept += [p.grad.flatten().clone() for p in self.param_groups[0]["params"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_beside_a_float16_base_are_those_of_float32(tmp_path, monkeypatch, family):
    """Of a batch as large as a picture is at full size. Without a scale the worst layer's cosine is 0.1 for FLUX.
    Qwen-Image's models round the time itself to the base's dtype; in Krea 2 the queries and keys that weigh a word's
    states have gradients of a ten-thousandth of the others'."""
    found = {}
    for dtype in ("float32", "float16"):
        kept = found[dtype] = []
        monkeypatch.setitem(optimizers.OPTIMIZERS, "adam", partial(Seen, kept))
        base = open_base(pico.folder(family), "cpu", dtype)
        train(settings(tmp_path, steps=1, batch_size=16, method="lora"), base=base)
    for ours, theirs in zip(found["float16"], found["float32"], strict=True):
        if theirs.any():  # A's gradient is zero while B is
            close, near = {"qwen_image": (0.99, 0.1), "qwen_image_21": (0.98, 0.1), "krea2": (0.95, 0.2)}.get(
                family, (0.999, 0.02)
            )
            assert cosine_similarity(ours, theirs, 0) > close and abs(ours.norm() / theirs.norm() - 1) < near


def started_at(exponent, device, dtype):
    scale = LossScale(device, dtype)
    scale.load_state_dict({**scale.state_dict(), "scale": 2.0**exponent})
    return scale


def test_an_update_whose_gradients_overflow_is_done_again_at_half_the_scale_and_none_is_lost(tmp_path, monkeypatch):
    """Powers of two change no digit: all is as if the scale had been right from the start."""
    base, adapters, steps = open_base(pico.folder("sd3"), "cpu", "float16"), [], []
    for exponent in (12, 40):
        monkeypatch.setattr(training_loop, "LossScale", partial(started_at, exponent))
        adapters.append(train(settings(tmp_path), base=base, on_step=lambda p: steps.append(p.step)))
    assert steps == [1, 2, 3, 4, 5, 6] * 2
    for name, pair in adapters[0].layers.items():
        torch.testing.assert_close(adapters[1].layers[name].B, pair.B, rtol=1e-2, atol=1e-4)


def test_gradients_that_are_infinite_at_any_scale_are_an_error():
    p = torch.nn.Parameter(torch.zeros(3))
    scale, optimizer = LossScale(p.device, torch.float16), torch.optim.Adam([p])

    def attempt():
        optimizer.zero_grad()
        scale.backward(p.sqrt().sum())  # a loss of 0 whose gradient is infinite
        return scale.step(optimizer)

    assert [attempt() for _ in range(16)] == [False] * 16
    with pytest.raises(ValueError, match="float16's range at any scale: use dtype=bfloat16 or dtype=float32"):
        attempt()
    assert not p.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_bases_know_no_scale(dtype):
    p = torch.nn.Parameter(torch.ones(3))
    scale = LossScale(p.device, dtype)
    scale.backward(p.square().sum())
    assert (
        torch.equal(p.grad, 2 * torch.ones(3)) and scale.step(torch.optim.SGD([p], 0.25)) and scale.state_dict() == {}
    )
    assert torch.equal(p.detach(), torch.full((3,), 0.5))


def test_a_float16_run_goes_on_with_the_scale_it_had(tmp_path, monkeypatch):
    base, scales = open_base(pico.folder("sd3"), "cpu", "float16"), []

    def watched(device, dtype):
        scales.append(started_at(30, device, dtype) if not scales else LossScale(device, dtype))
        return scales[-1]

    monkeypatch.setattr(training_loop, "LossScale", watched)

    def stop(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    train(settings(tmp_path, output=tmp_path / "whole.safetensors"), base=base)
    scales.clear()
    config = settings(tmp_path, save_every=3)
    with pytest.raises(KeyboardInterrupt):
        train(config, base=base, on_step=stop)
    told = json.loads(read_metadata(config.checkpoints / "state.safetensors")["loss scale"])
    assert 2.0**16 < told["scale"] < 2.0**30
    train(config, base=base)
    assert scales[1].state_dict()["scale"] == told["scale"]
    for name, pair in load(tmp_path / "whole.safetensors").layers.items():
        assert torch.equal(load(config.output).layers[name].B, pair.B)
