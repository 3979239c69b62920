"""The known-answer world: its pictures, captions, VAE and pre-training."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from qrlora.families import open_base
from qrlora.world import autoencoder, demo, judges, pretrain, score
from qrlora.world.atlas import SIZE, contents, held_out_contents, known_contents, true_pictures
from qrlora.world.captions import caption, training_caption
from qrlora.world.demo import to_tensor
from qrlora.world.models import BASES, BLUEPRINTS, TEXT_LENGTH, world_tokenizer
from qrlora.world.random_styles import random_style
from qrlora.world.styles import ALL_STYLES, HELD_OUT_STYLES, STYLES


def test_the_world_has_400_known_and_60_held_out_contents_and_24_and_6_styles():
    assert len(known_contents()) == 400 and len(held_out_contents()) == 60
    assert not set(known_contents()) & set(held_out_contents()) and len(set(contents())) == 460
    assert len(STYLES) == 24 and len(HELD_OUT_STYLES) == 6 and len(ALL_STYLES) == 30


@pytest.mark.parametrize("style", ALL_STYLES)
def test_a_style_is_a_function_of_one_picture_alone(style):
    """The same picture in another batch, or the second time, has the same answer: else no picture would be true."""
    names = list(contents()[::57])
    together = true_pictures(names, style)
    assert together.shape == (len(names), 3, SIZE, SIZE) and 0 <= together.min() and together.max() <= 1
    torch.testing.assert_close(together[2:3], true_pictures(names[2:3], style), rtol=0, atol=1.01 / 255)


def test_no_two_styles_draw_a_thing_alike():
    drawn = torch.stack([true_pictures(contents()[:8], style) for style in ALL_STYLES]).flatten(1)
    distance = torch.cdist(drawn, drawn) / drawn.shape[1] ** 0.5
    distance.fill_diagonal_(1)
    assert distance.min() > 0.05


def test_an_unknown_thing_or_style_is_named():
    with pytest.raises(ValueError, match="no content 'unicorn pizza'"):
        true_pictures(["unicorn pizza"])
    with pytest.raises(ValueError, match="no style 'baroque'"):
        true_pictures(contents()[:1], "baroque")


def test_every_caption_fits_the_text_encoders():
    tokenizer = world_tokenizer()
    longest = max(len(tokenizer(caption(c, s)).input_ids) for c in contents() for s in ("watercolor", "blueprint"))
    assert longest <= TEXT_LENGTH


def test_the_tokenizer_of_the_world_is_that_of_the_base_that_ships():
    """Learnt twice it would number its tokens in two ways, and a base would read words that it never saw."""
    from qrlora.world.models import BASES, TOKENIZER

    for name in ("tokenizer", "tokenizer_2"):
        shipped = (BASES / "tiny-sdxl" / name / "tokenizer.json").read_bytes()
        assert json.loads(shipped)["model"] == json.loads((TOKENIZER / "tokenizer.json").read_bytes())["model"]


def test_a_tenth_of_the_training_captions_is_empty_and_of_the_rest_a_fifth_has_no_thing_and_a_twentieth_no_style():
    generator = torch.Generator().manual_seed(0)
    drawn = [training_caption("owl", "neon", generator) for _ in range(4000)]
    assert abs(drawn.count("") / 4000 - 0.10) < 0.02
    assert abs(sum("<c>" in d for d in drawn) / 3600 - 0.20) < 0.02
    assert abs(sum("<s>" in d for d in drawn) / 3600 - 0.05) < 0.02


def test_no_random_style_is_nearer_to_a_held_out_style_than_a_style_with_a_word_is():
    """On drawings that the choice was not made on, within a tenth: the held-out styles are new to every base."""
    generator, things = torch.Generator().manual_seed(0), known_contents()[7::16]
    drawn = torch.stack([random_style(generator)(true_pictures(things)).clamp(0, 1) for _ in range(150)]).flatten(1)
    worded, hidden = (
        torch.stack([true_pictures(things, style) for style in styles]).flatten(1)
        for styles in (STYLES, HELD_OUT_STYLES)
    )
    assert (torch.cdist(hidden, drawn).amin(1) > 0.9 * torch.cdist(hidden, worded).amin(1)).all()


def test_random_styles_differ_from_each_other_and_come_again_from_the_same_seed():
    things = known_contents()[:4]
    first, again = (
        [random_style(g)(true_pictures(things)) for _ in range(30)]
        for g in (torch.Generator().manual_seed(3), torch.Generator().manual_seed(3))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn = torch.stack(first).flatten(1)
    distance = torch.cdist(drawn, drawn) / drawn.shape[1] ** 0.5
    distance.fill_diagonal_(1)
    assert distance.min() > 0.03


def test_a_share_of_each_batch_is_in_random_styles_and_called_so():
    """Their latents are those of true pictures that no style with a word draws."""
    latents = torch.zeros(len(STYLES), len(known_contents()), 16, 16, 16)
    run = SimpleNamespace(
        generator=torch.Generator().manual_seed(0),
        settings=pretrain.Pretraining(batch_size=24, random_styles=0.5),
    )
    clean, captions = pretrain.lesson(run, latents)
    drawn = clean.flatten(1).abs().amax(1) > 0
    assert drawn[:12].all() and not drawn[12:].any()
    assert all("<s>" in caption or not caption for caption in captions[:12])
    assert sum("<s>" in caption for caption in captions[12:]) <= 2


def test_the_stock_vae_is_the_orthonormal_projection_of_patches():
    """Encoding and decoding by diffusers' class equal plain algebra in float64."""
    pixels = torch.cat([true_pictures(contents()[::60], style) for style in ("plain", "neon")]) * 2 - 1
    mean, directions, deviation = autoencoder.principal_patches(pixels)
    torch.testing.assert_close(directions.T @ directions, torch.eye(16), rtol=0, atol=1e-5)
    vae = autoencoder.patch_autoencoder(mean, directions, deviation)
    latents = autoencoder.encode(pixels.double(), mean.double(), directions.double(), deviation)
    with torch.no_grad():
        posterior = vae.encode(pixels[:3]).latent_dist
        decoded = vae.decode((latents[:3] / vae.config.scaling_factor).float()).sample
    torch.testing.assert_close(posterior.mode() * vae.config.scaling_factor, latents[:3].float(), rtol=0, atol=2e-4)
    torch.testing.assert_close(
        decoded,
        autoencoder.decode(latents[:3], mean.double(), directions.double(), deviation).float(),
        rtol=0,
        atol=2e-4,
    )
    assert float((decoded - pixels[:3]).square().mean() / pixels.var()) < 0.05
    assert float(posterior.std.max()) < 1e-5


@pytest.fixture
def two_steps(monkeypatch):
    """A world of one style and few latents, so that a step of pre-training takes a second."""
    few = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(pretrain, "world_latents", lambda: few.expand(len(STYLES), len(known_contents()), -1, -1, -1))
    return pretrain.Pretraining(samples=24, batch_size=6, warmup=1)


def test_pretraining_can_start_from_a_finished_base(two_steps):
    """Every weight, text encoders and VAE too, is the base's; the same family built anew is not."""
    run = pretrain.Run("tiny-flux", dataclasses.replace(two_steps, start=str(BASES / "tiny-flux")), "cpu")
    kept = load_file(BASES / "tiny-flux" / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, weight in run.pipe.transformer.state_dict().items():
        assert torch.equal(weight, kept[name].float()), name


def test_a_learning_curve_ends_in_the_scores_of_the_base_that_the_run_would_write(tmp_path, two_steps):
    """A run that has just started from a finished base has that base's scores; an untrained one has few."""
    started = dataclasses.replace(two_steps, start=str(BASES / "tiny-flux"))
    pretrain.Run("tiny-flux", started, "cpu").save(tmp_path / "started.pt")
    pretrain.pretrain("tiny-flux", tmp_path, two_steps, "cpu", 100, float("inf"), keep=3)
    checkpoints = [tmp_path / "step-3.pt", tmp_path / "started.pt"]
    first, last = score.learning_curve("tiny-flux", checkpoints, captions=20)
    assert first == {"samples": 0, **score.base_scores(open_base("tiny-flux"), 20)} and first["style"] > 0.9
    assert last["samples"] == 18 and last["style"] < 0.5


@pytest.mark.parametrize("base", BLUEPRINTS)
def test_pretraining_that_was_stopped_and_resumed_ends_in_the_same_weights(base, tmp_path, two_steps):
    whole = pretrain.pretrain(base, tmp_path / "whole", two_steps, "cpu", 100, float("inf"))
    half = pretrain.pretrain(base, tmp_path / "cut", two_steps, "cpu", 2, 0)
    assert half.step == 0
    first = pretrain.Run(base, two_steps, "cpu")
    latents = pretrain.world_latents()
    for _ in range(2):
        pretrain.step(first, latents)
    first.save(tmp_path / "cut" / "last.pt")
    resumed = pretrain.pretrain(base, tmp_path / "cut", two_steps, "cpu", 100, float("inf"))
    assert resumed.step == whole.step == 4
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_the_judges_name_true_pictures_they_have_not_seen():
    """Of pairs of content and style kept from their training: at least 95 % of contents and 98 % of styles."""
    pairs = judges.unseen_pairs().nonzero()[::11]
    styles = tuple(ALL_STYLES)
    right = [judges.judge(true_pictures([contents()[int(c)]], styles[int(s)]))[0] for c, s in pairs]
    content = [v.content == contents()[int(c)] for v, (c, _) in zip(right, pairs, strict=True)]
    style = [v.style == styles[int(s)] for v, (_, s) in zip(right, pairs, strict=True)]
    assert (
        sum(content) / len(content) >= 0.92 and sum(style) / len(style) >= 0.95
    )  # about 125 pictures: one in 20 is noise
    told = judges.accuracy_on_unseen()
    assert told["content"] >= 0.95 and told["style"] >= 0.98


@pytest.mark.parametrize("folder", sorted(path for path in BASES.iterdir() if path.is_dir()), ids=lambda p: p.name)
def test_a_built_in_base_is_a_stock_pipeline_of_at_most_16_mb(folder, tmp_path):
    import zipfile

    import diffusers

    with zipfile.ZipFile(tmp_path / "wheel.zip", "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in folder.rglob("*"):
            wheel.write(path)
    assert (tmp_path / "wheel.zip").stat().st_size <= 16e6
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, kind).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    # SDXL's pipeline has no such option; the others' T5 was never shown longer prompts
    short = {} if kind == "StableDiffusionXLPipeline" else {"max_sequence_length": TEXT_LENGTH}
    (picture,) = pipe(
        caption("penguin", "neon"),
        num_inference_steps=16,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
        **short,
    ).images
    assert judges.judge(to_tensor([picture]))[0].style == "neon"
    learns = json.loads((folder / "qrlora.json").read_text())["defaults"]["train"]
    assert learns["rank"] and learns["targets"]


def test_nobody_knows_what_style_a_content_picture_of_ones_own_has(monkeypatch, tmp_path):
    """So the judges' word on pictures learnt from it is neither right nor wrong."""
    Image.new("RGB", (SIZE, SIZE), "red").save(tmp_path / "own.png")
    own = demo.Lesson(image=tmp_path / "own.png", prompt="a <c> in plain style")
    monkeypatch.setattr(demo, "generate", lambda *_, **__: [Image.new("RGB", (SIZE, SIZE))])
    base = SimpleNamespace(defaults=SimpleNamespace(resolution=SIZE))
    rows = {row.title.split(":")[0]: row for row in demo._rows(base, (own, own), [None, None], None, 1, 0, None)}
    assert rows["content adapter"].right(rows["content adapter"].verdicts[0]) is None
    assert rows["merged by adding"].right(rows["merged by adding"].verdicts[0]) is None
