"""ZipLoRA, the policies and StyleAligned against their equations, on random tensors and pico bases."""

import copy
import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from PIL import Image

import pico
from qrlora.adapter import Adapter, Header, Pair
from qrlora.baselines import FUSIONS, FusionInputs, TrainingImage
from qrlora.baselines.adapter_schedules import (
    Schedule,
    apply_schedule,
    average_predictions,
    k_lora_schedule,
    switch_schedule,
)
from qrlora.baselines.style_aligned import SharedAttentionProcessor, adain, invert_image, reference_rows, style_aligned
from qrlora.baselines.ziplora import coefficient_overlap, merge_with_coefficients
from qrlora.families import SizeConditioning, open_base
from qrlora.injection import applied, set_strengths, with_coefficients
from qrlora.sampling import generate


@functools.cache
def opened(family="sdxl", **changes):
    return open_base(pico.folder(family, **changes), "cpu")


def adapter(base, seed, size=0.3, targets=None):
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: Pair(
            torch.randn(2, layer.in_features, generator=generator) * size,
            torch.randn(layer.out_features, 2, generator=generator) * size,
        )
        for name, layer in base.target_layers(targets or base.family.defaults.targets).items()
    }
    return Adapter(layers, Header(rank=2))


def question(base, seed=0):
    noisy = pico.latents(base, 2, torch.Generator().manual_seed(seed))
    told = base.encode_prompt(["a dog", "a cat"], SizeConditioning.uncropped(pico.SIZE, pico.SIZE))
    return noisy, torch.tensor([500, 500]), told


def answer(base, asked):
    with torch.no_grad():
        return base.family.predict(base.model, *asked)


def values(pictures):
    return np.stack([np.asarray(picture).astype(int) for picture in pictures])


# --- ZipLoRA


def test_zipped_updates_are_scaled_by_column_exactly_at_the_sum_of_the_ranks():
    base = opened("flux")
    adapters = [adapter(base, 1), adapter(base, 2)]
    gates = [{x: torch.randn(p.shape[1]) for x, p in each.layers.items()} for each in adapters]
    merged = merge_with_coefficients(*adapters, *gates)
    for layer in merged.layers:
        exact = sum(
            each.dense(layer).double() @ torch.diag(m[layer].double()) for each, m in zip(adapters, gates, strict=True)
        )
        torch.testing.assert_close(merged.dense(layer).double(), exact, atol=1e-5, rtol=1e-5)
    assert merged.rank == 4
    means = [float((gates[0][x] * gates[1][x]).abs().mean()) for x in merged.layers]
    assert float(coefficient_overlap(*gates)) == pytest.approx(sum(means), rel=1e-5)


def test_a_gate_is_a_diagonal_on_the_right_of_a():
    base, one = opened(), adapter(opened(), 1)
    gates = {x: torch.randn(p.shape[1]) for x, p in one.layers.items()}
    scaled = dataclasses.replace(one, layers={x: Pair(p.A * gates[x], p.B) for x, p in one.layers.items()})
    with applied(base.model, [(one, 1.0)]) as (name,), with_coefficients(base.model, name, gates):
        ours = answer(base, question(base))
    with applied(base.model, [(scaled, 1.0)]):
        torch.testing.assert_close(ours, answer(base, question(base)), atol=1e-4, rtol=1e-4)


def test_what_has_a_strength_for_each_picture_cannot_be_gated():
    base, one = opened(), adapter(opened(), 1)
    with applied(base.model, [(one, 1.0)]) as (name,):
        set_strengths(base.model, {name: torch.ones(2)})
        with pytest.raises(ValueError, match="takes no coefficients"), with_coefficients(base.model, name, {}):
            pass


def test_ziploras_published_learning_rate_is_the_direct_merge_and_ours_moves(tmp_path):
    """100 updates of Adam at 5e-5 cannot move a coefficient by more than 0.005."""
    base = opened("flux")
    Image.effect_noise((16, 16), 60).convert("RGB").save(tmp_path / "x.png")
    lessons = [TrainingImage(tmp_path / "x.png", prompt) for prompt in ("a <c>", "a cat in <s> style")]
    last = "single_transformer_blocks.0.attn.to_q"  # gradients go no further back
    task = FusionInputs(base, adapter(base, 1, targets=last), adapter(base, 2, targets=last), *lessons)
    direct = FUSIONS["lora"].fuse(task).adapter
    moved = {}
    for name in ("ziplora-published", "ziplora"):
        merged = FUSIONS[name].fuse(task).adapter
        moved[name] = merged.header.config["largest_change"]
        lost = max(float(torch.dist(merged.dense(x), direct.dense(x)) / direct.dense(x).norm()) for x in direct.layers)
        assert (lost < 0.006) == (name == "ziplora-published")
    assert moved["ziplora-published"] <= 0.0051 and moved["ziplora"] > 0.1


# --- policies


def strengths_by_layer(schedule: Schedule, steps: int) -> dict[str, list[tuple[float, ...]]]:
    """{layer: the adapters' strengths at each step of a schedule}; 0 for an adapter that is not on the layer."""
    rows = [schedule(step, steps) for step in range(steps)]
    layers = dict.fromkeys(layer for each in rows[0] for layer in each)
    return {layer: [tuple(each.get(layer, 0.0) for each in row) for row in rows] for layer in layers}


def test_switch_takes_turns_of_five_steps():
    one, two = adapter(opened(), 1), adapter(opened(), 2)
    table = strengths_by_layer(switch_schedule([one, two], (0.8, 0.6)), 12)
    assert set(table) == set(one.layers)
    assert set(map(tuple, table.values())) == {((0.8, 0.0),) * 5 + ((0.0, 0.6),) * 5 + ((0.8, 0.0),) * 2}


@pytest.mark.parametrize("alternating", [False, True])
def test_k_lora_chooses_by_the_largest_entries_of_the_updates(alternating):
    """content iff top_K |dW_c| / gamma > S(t) top_K |dW_s|, computed layer by layer and step by step."""
    content, style = adapter(opened(), 1), adapter(opened(), 2, size=0.2)
    style = dataclasses.replace(
        style, layers={x: Pair(p.A * (1 + k % 3), p.B) for k, (x, p) in enumerate(style.layers.items())}
    )
    table = strengths_by_layer(k_lora_schedule([content, style], (1.0, 0.7), alternating), 10)
    ratios = {x: float(content.dense(x).abs().sum() / style.dense(x).abs().sum()) for x in content.layers}
    mean = sum(ratios.values()) / len(ratios)
    inner = [x for x in ratios.values() if x < 3 * mean]
    gamma, chosen = sum(inner) / len(inner), set()
    for layer in content.layers:
        top_c, top_s = (np.sort(np.abs(x.dense(layer).double().numpy()).ravel())[-4:].sum() for x in (content, style))
        for t in range(10):
            scale = (1.5 * t / 10 + 0.85 * 1.5) % 1.5 if alternating else 1.5 * t / 10 + 0.5
            wins = top_c / gamma > scale * top_s
            assert table[layer][t] == ((1.0, 0.0) if wins else (0.0, 0.7))
            chosen.add((bool(wins), t))
    assert {wins for wins, _ in chosen} == {True, False}


@pytest.mark.parametrize("family", pico.BASES)
def test_a_plan_is_told_the_pipelines_own_steps_for_every_picture(family):
    """Whatever guidance does, and from 0 again for the next batch: a global count of calls would not."""
    base, told = opened(family), []

    def plan(step, steps):
        told.append((step, steps))
        return []

    with apply_schedule(base, [], plan):
        generate(base, "a dog", count=2, batch_size=1, steps=3, guidance=2.0)
        generate(base, "a dog", steps=2, guidance=1.0)
    assert told[:6] == [(0, 3), (1, 3), (2, 3)] * 2 and told[6:] in ([(0, 2), (1, 2)], [])


def test_flux_with_two_calls_a_step_counts_steps_and_not_calls():
    base, told = opened("flux", guidance_embeds=False), []
    with apply_schedule(base, [], lambda step, steps: told.append(step) or []):
        generate(base, "a dog", steps=3, guidance=4.0)
    assert told == [0, 1, 2]


def test_switch_with_one_endless_turn_is_the_first_adapter_alone():
    base = opened()
    one, two = adapter(base, 1), adapter(base, 2)
    plan = switch_schedule([one, two], (1.0, 1.0), turn=100)
    with applied(base.model, [(one, 0.0), (two, 0.0)]) as names, apply_schedule(base, names, plan):
        ours = generate(base, "a dog")
    assert np.abs(values(ours) - values(generate(base, "a dog", [(one, 1.0)]))).max() <= 1
    assert np.abs(values(ours) - values(generate(base, "a dog", [(two, 1.0)]))).max() > 1


@pytest.mark.parametrize("family", pico.BASES)
def test_composite_answers_the_mean_of_each_adapters_answer(family):
    base = opened(family)
    one, two, asked = adapter(base, 1), adapter(base, 2), question(base)
    alone = []
    for each, strength in ((one, 0.8), (two, 0.6)):
        with applied(base.model, [(each, strength)]):
            alone.append(answer(base, asked))
    with applied(base.model, [(one, 0.0), (two, 0.0)]) as names:
        with average_predictions(base, dict(zip(names, (0.8, 0.6), strict=True))):
            ours = answer(base, asked)
        set_strengths(base.model, dict.fromkeys(names, 0.0))
        torch.testing.assert_close(answer(base, asked), answer(base, asked))
    torch.testing.assert_close(ours, sum(alone) / 2, atol=1e-4, rtol=1e-4)


# --- StyleAligned


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (math.log(2), 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("halves", [1, 2])
def test_shared_attention_is_the_papers_for_each_picture_and_head(halves, shift, scale):
    """With guidance each half has its own reference; without it, the first row is the reference of all."""
    base = opened()
    attn = next(m for name, m in base.model.named_modules() if name.endswith("attn1") and m.heads > 1)
    x = torch.randn(halves * 3, 7, attn.to_q.in_features, generator=torch.Generator().manual_seed(1))
    ours = SharedAttentionProcessor(3, shift, scale)(attn, x)
    q, k, v = (layer(x).detach().double() for layer in (attn.to_q, attn.to_k, attn.to_v))

    def moved(z, of):
        spread = [(y.var(0, unbiased=True) + 1e-5).sqrt() for y in (z, of)]
        return (z - z.mean(0)) / spread[0] * spread[1] + of.mean(0)

    for row in range(len(x)):
        first, heads = 3 * (row // 3), []
        width = q.shape[2] // attn.heads
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            query, own = (moved(z[row], z[first])[:, part] for z in (q, k))
            keys = torch.cat([own, k[first][:, part] * (scale if row > first else 1)])
            logits = query @ keys.T / width**0.5 + torch.tensor([0.0] * 7 + [shift] * 7)
            heads.append(logits.softmax(-1) @ torch.cat([v[row][:, part], v[first][:, part]]))
        exact = attn.to_out[0](torch.cat(heads, 1).float())
        torch.testing.assert_close(ours[row], exact, atol=1e-5, rtol=1e-4)
    plain = attn(x)
    torch.testing.assert_close(ours[::3], plain[::3], atol=1e-5, rtol=1e-4)  # the reference is not changed by sharing
    assert torch.dist(ours[1], plain[1]) > 1e-3 * plain[1].norm()


def test_sharing_layer_norm_would_change_nothing_and_group_norm_does():
    x = torch.randn(3, 8, 5, 5)
    both = torch.cat([x, reference_rows(x, 3)], 2)
    layer = torch.nn.LayerNorm(5)
    torch.testing.assert_close(layer(both)[:, :, :5], layer(x))
    group = torch.nn.GroupNorm(2, 8)
    assert torch.dist(group(both)[1:, :, :5], group(x)[1:]) > 0.1
    torch.testing.assert_close(group(both)[0, :, :5], group(x)[0])
    moved = adain(x.flatten(2).mT, reference_rows(x, 3).flatten(2).mT)
    torch.testing.assert_close(moved.mean(1), reference_rows(x, 3).flatten(2).mean(2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}],
    ids=["epsilon", "v at zero terminal SNR"],
)
def test_ddim_steps_lead_back_from_the_inverted_noise_to_the_picture(tmp_path, changes):
    """diffusers' own DDIM, step by step along the trajectory; its last picture is the latents that we began with."""
    from diffusers import DDIMScheduler

    from qrlora.image_loading import load_image
    from qrlora.training_example import encode_training_examples

    base = opened("sdxl", **changes)
    Image.effect_noise((16, 16), 60).convert("RGB").save(tmp_path / "x.png")
    base = dataclasses.replace(base, defaults=dataclasses.replace(base.defaults, sample_steps=4))
    pipe = copy.copy(base.pipe)
    config = {**pipe.scheduler.config, "timestep_spacing": "trailing", "steps_offset": 0}
    pipe.scheduler = type(pipe.scheduler).from_config(config)
    base.pipe = pipe  # and a field that is smooth enough for asking again to find the very x' (a random UNet is not)
    base.family = dataclasses.replace(base.family, predict=lambda _model, x, time, _told: 0.3 * x.roll(1, 2) + 0.1)
    lesson = TrainingImage(tmp_path / "x.png", "a cat")
    trajectory = invert_image(base, lesson, repeats=60)
    example = encode_training_examples(base, [load_image(lesson.image, pico.SIZE)], [lesson.prompt])
    ddim = DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=True)
    ddim.set_timesteps(4)
    assert [float(t) for t in ddim.timesteps] == sorted(trajectory, reverse=True)
    x = trajectory[max(trajectory)]
    for time in ddim.timesteps:
        torch.testing.assert_close(x, trajectory[float(time)], atol=1e-4, rtol=1e-4)
        x = ddim.step(answer(base, (x, time[None], example.condition)), time, x).prev_sample
    torch.testing.assert_close(x, example.latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_pictures_look_at_the_first_one_with_and_without_guidance(guidance):
    """The reference is drawn as ever when only attention is shared; the others change with it."""
    base, told = opened(), ["a dog", "a red car"]
    plain = values(generate(base, told, seed=[1, 2], guidance=guidance))
    with style_aligned(base, 2):
        ours = values(generate(base, told, seed=[1, 2], guidance=guidance))
        other = values(generate(base, ["a cat", told[1]], seed=[5, 2], guidance=guidance))
    assert np.abs(ours[0] - plain[0]).max() <= 1 and np.abs(ours[1] - plain[1]).max() > 1
    assert np.abs(ours[1] - other[1]).max() > 1


def test_a_batch_of_another_size_and_fused_layers_are_refused():
    base = opened()
    with (
        style_aligned(base, 2),
        pytest.raises(ValueError, match="set up for 2 images, and the model's batch has 6 rows"),
    ):
        generate(base, ["a dog"] * 3, seed=[1, 2, 3])
    pipe = copy.copy(base.pipe)
    pipe.unet = copy.deepcopy(base.model)
    pipe.unet.fuse_qkv_projections()
    with (
        pytest.raises(ValueError, match="q, k and v are fused"),
        style_aligned(dataclasses.replace(base, pipe=pipe), 2),
    ):
        pass


# --- B-LoRA and Ortha


def test_b_lora_takes_content_from_one_block_and_style_from_the_other():
    base = opened()
    one, two = adapter(base, 1, targets="b-lora"), adapter(base, 2, targets="b-lora")
    merged = FUSIONS["b-lora"].fuse(FusionInputs(base, one, two, None, None, weights=(0.5, 2.0))).adapter
    assert set(merged.layers) == set(base.target_layers("b-lora"))
    for layer in merged.layers:
        of_content = layer.startswith("up_blocks.0.attentions.0.")
        assert of_content or layer.startswith("up_blocks.0.attentions.1.")
        exact = 0.5 * one.dense(layer) if of_content else 2.0 * two.dense(layer)
        torch.testing.assert_close(merged.dense(layer), exact)
    elsewhere = adapter(base, 1, targets="down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    with pytest.raises(ValueError, match="the content adapter has no layer in up_blocks.0.attentions.0: train it with"):
        FUSIONS["b-lora"].fuse(FusionInputs(base, elsewhere, two, None, None))
    with pytest.raises(ValueError, match="no linear layer ends in 'b-lora'"):
        opened("flux").target_layers("b-lora")


def test_ortha_adapters_of_one_slot_are_refused():
    base, same = opened(), Header(rank=2, config={"slot": 0})
    one, two = (dataclasses.replace(adapter(base, seed), header=same) for seed in (1, 2))
    with pytest.raises(ValueError, match="both adapters have slot 0"):
        FUSIONS["ortha"].fuse(FusionInputs(base, one, two, None, None))


def test_a_fusion_tells_how_each_role_is_learnt():
    assert FUSIONS["b-lora"].settings("style") == {"method": "lora", "targets": "b-lora", "role": "style"}
    own = dataclasses.replace(FUSIONS["lora"], learn={"method": "lora", "rank": 8, "style": {"rank": 4}})
    assert (own.settings("content")["rank"], own.settings("style")["rank"]) == (8, 4)
    with pytest.raises(ValueError, match="got no style adapter"):
        _ = FusionInputs(opened(), adapter(opened(), 1), None, None, None).both
