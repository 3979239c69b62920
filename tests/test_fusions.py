"""Every way to bring a content and a style together, end to end on pico bases."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from PIL import Image

import pico
from qrlora.baselines import FUSIONS, FusionInputs, TrainingImage
from qrlora.baselines.fusion_table import fusion, method_of_adapters
from qrlora.baselines.ziplora import ziplora
from qrlora.config import TrainConfig
from qrlora.families import open_base
from qrlora.files import load, save
from qrlora.injection import adapter_names
from qrlora.merging import merge
from qrlora.merging.merge_adapters import OLD_RULES
from qrlora.sampling import generate
from qrlora.training import train

PROMPTS = {"content": "a <c>", "style": "a cat in <s> style"}
WANTED = "a <c> in <s> style"


@functools.cache
def opened(family):
    return open_base(pico.folder(family), "cpu")


@pytest.fixture(autouse=True)
def few_updates_of_ziplora(monkeypatch):
    """Three updates of its coefficients instead of a hundred, all of which are alike."""
    monkeypatch.setitem(FUSIONS, "ziplora", dataclasses.replace(FUSIONS["ziplora"], fuse=ziplora(0.05, steps=3)))


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """role -> its picture, of noise, and its prompt."""
    folder = tmp_path_factory.mktemp("lessons")

    def made(role):
        path = folder / f"{role}.png"
        noise = torch.randint(
            0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(len(role)), dtype=torch.uint8
        )
        Image.fromarray(noise.numpy()).save(path)
        return TrainingImage(path, PROMPTS[role])

    return made


@pytest.fixture(scope="module")
def task(lesson, tmp_path_factory):
    """(fusion, family, settings) -> a task whose adapters were learnt in two large updates as the fusion says."""
    folder, learnt = tmp_path_factory.mktemp("learnt"), {}

    def adapter(fusion, family, role, **changes):
        told = {"learning_rate": 0.05, "steps": 2, "rank": 2, **fusion.settings(role), **changes}
        key = (family, *sorted(told.items()))
        if key not in learnt:
            where = {"image": lesson(role).image, "prompt": lesson(role).prompt, "device": "cpu"}
            config = TrainConfig(**where, output=folder / "x.safetensors", overwrite=True, **told)
            learnt[key] = train(config, base=opened(family))
        return learnt[key]

    def made(name, family="sdxl", **changes):
        fusion = FUSIONS[name]
        style = adapter(fusion, family, "style", **changes) if fusion.trains_style_adapter else None
        content = adapter(fusion, family, "content", **changes)
        return FusionInputs(opened(family), content, style, lesson("content"), lesson("style"))

    return made


def state(base):
    """All that a fusion could leave behind on a base."""
    model = base.model
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    processors = [id(x) for x in getattr(model, "attn_processors", {}).values()]
    kinds = [(name, type(module)) for name, module in model.named_modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    learning = [p.requires_grad for p in model.parameters()]
    rest = (hooks, processors, kinds, learning, "forward" in model.__dict__, dict(base.pipe.scheduler.config))
    return weights, (*rest, type(base.pipe.scheduler), hasattr(model, "peft_config"), adapter_names(model))


def values(pictures):
    return np.stack([np.asarray(picture).astype(int) for picture in pictures])


def assert_unchanged(base, before):
    (weights, rest), (now, rest_now) = before, state(base)
    assert rest_now == rest and list(now) == list(weights)
    assert all(torch.equal(now[key], weights[key]) for key in weights)


ANYWHERE = [name for name, x in FUSIONS.items() if not x.families and name != "ziplora-published"]  # as ziplora is
CASES = [
    *pico.in_turn(ANYWHERE, pico.BASES),
    *((name, family) for name, x in FUSIONS.items() for family in x.families or ()),
]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_fusion_learns_fuses_draws_and_leaves_the_base_as_it_was(task, tmp_path, name, family):
    base, before = opened(family), state(opened(family))
    plain = values(generate(base, WANTED, seed=[3, 4]))
    fused = FUSIONS[name].fuse(task(name, family))
    pictures = fused.draw([WANTED, WANTED], [3, 4])
    assert [x.size for x in pictures] == [(pico.side_of(family), pico.side_of(family))] * 2
    assert np.abs(values(pictures) - plain).max() > 1  # it does something
    assert np.array_equal(values(pictures), values(fused.draw([WANTED, WANTED], [3, 4])))
    assert_unchanged(base, before)
    assert np.array_equal(values(generate(base, WANTED, seed=[3, 4])), plain)
    if fused.adapter is not None:
        save(fused.adapter, tmp_path / "x.safetensors")
        assert load(tmp_path / "x.safetensors").header == fused.adapter.header


@pytest.mark.parametrize("name", ["qr:rule=ties", "lora:rule=knots", "qr:rule=plain", "pissa:rule=stack"])
def test_a_rule_in_a_name_merges_the_adapters_of_the_method_before_it(task, name):
    """As `merge` does with that rule; what is trained is the method's, under whose name its adapters are found."""
    method, _, rule = name.partition(":rule=")
    given, found = task(method), fusion(name)
    wanted, merged = merge(given.both, given.weights, OLD_RULES.get(rule, rule)), found.fuse(given).adapter
    assert found.name == name and found.learn == FUSIONS[method].learn and method_of_adapters(name) == method
    for layer, pair in wanted.layers.items():
        assert torch.equal(merged.layers[layer].A, pair.A) and torch.equal(merged.layers[layer].B, pair.B)


def test_methods_that_only_merge_otherwise_share_the_adapters_of_lora():
    plain = {name for name in FUSIONS if method_of_adapters(name) == "lora"}
    assert {"lora", "ties", "dare", "knots", "lora-plain", "k-lora", "ziplora"} <= plain
    assert all(FUSIONS[name].learn == FUSIONS["lora"].learn for name in plain)
    assert method_of_adapters("b-lora") == "b-lora"  # on layers of its own
    assert method_of_adapters("peft:vera:rule=stack") == "peft:vera"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qr:rule=tie", "no merging rule 'tie'; choose one of sum, "),
        ("ziplora:rule=ties", "a rule merges adapters of qr, .* not of 'ziplora'"),
        ("lora:rule=sum", "lora trains both factors, .* take rule=stack"),
        ("peft:vera:rule=sum", "peft:vera trains both factors, "),
    ],
)
def test_a_rule_that_cannot_merge_a_methods_adapters_is_refused_before_they_are_trained(name, reason):
    with pytest.raises(ValueError, match=reason):
        fusion(name)


@pytest.mark.parametrize("name", [name for name, x in FUSIONS.items() if x.families])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_what_exists_for_sdxl_only_says_so(task, name, family):
    other = task("lora", family)
    with pytest.raises(ValueError, match=f"{name} exists for sdxl only, and .* is of {family}"):
        FUSIONS[name].fuse(other)


@pytest.mark.parametrize("name", ["k-lora", "lora-switch", "lora-composite", "style-aligned", "ziplora"])
def test_the_base_comes_back_also_after_an_error(task, monkeypatch, name):
    base, made = opened("sdxl"), task(name)
    before, fused = state(base), None
    calls = []

    def failing(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return own(*arguments, **named)

    own = base.model.mid_block.forward
    with monkeypatch.context() as patch:
        if name != "ziplora":
            fused = FUSIONS[name].fuse(made)
        patch.setattr(base.model.mid_block, "forward", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            fused.draw([WANTED], [1]) if fused else FUSIONS[name].fuse(made)
    assert_unchanged(base, before)
