"""The synthetic benchmark: its images, captions, VAEs, classifiers and pre-training."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images

import pico
from few_latents import few_latents
from qrlora import world
from qrlora.adapter import Adapter, Header, Pair
from qrlora.basis import fingerprint
from qrlora.built_in_bases import built_in_bases, folder_of
from qrlora.comparison.crossed_adapters import CrossedAdapters, CrossedSettings
from qrlora.comparison.fusion_comparison import plan_comparison
from qrlora.comparison.settings import ComparisonSettings
from qrlora.families import FAMILIES, SizeConditioning, adapter_compatibility, open_base
from qrlora.reproduction.paper_results import reproduce
from qrlora.reproduction.request import ReproductionRequest
from qrlora.sampling import generate
from qrlora.world import (
    base_export,
    base_scores,
    classifier_training,
    classifiers,
    demo,
    drawings,
    muon,
    pretrain,
    pretraining_set,
    pretraining_state,
)
from qrlora.world.base_architectures import ARCHITECTURES
from qrlora.world.captions import SYNONYMS, caption, training_caption
from qrlora.world.drawings import HANDS, SIZE, contents, contents_drawn_by, held_out_contents, known_contents
from qrlora.world.edition import check_edition_of_base
from qrlora.world.ground_truth import true_images
from qrlora.world.image_tensors import pil_from_tensor, tensor_from_pil
from qrlora.world.model_card import write_card
from qrlora.world.random_styles import random_style
from qrlora.world.styles import ALL_STYLES, HELD_OUT_STYLES, STYLES
from qrlora.world.tokenizers import TEXT_LENGTH, TOKENIZER_FOLDER, clip_tokenizer, t5_tokenizer


def test_the_world_has_400_known_and_60_held_out_contents_and_24_and_6_styles():
    assert len(known_contents()) == 400 and len(held_out_contents()) == 60
    assert not set(known_contents()) & set(held_out_contents()) and len(set(contents())) == 460
    assert len(STYLES) == 24 and len(HELD_OUT_STYLES) == 6 and len(ALL_STYLES) == 30


HERE = known_contents()[::10]
"""Known contents that the package's own sheets hold."""


def test_the_packages_ship_every_held_out_content_and_the_contents_of_style_images(monkeypatch, tmp_path):
    """By the plain hand all contents; by every other at least 45 held-out ones and 30 known ones."""
    monkeypatch.setattr(drawings, "full_sheet_folder", lambda: tmp_path)
    shipped = {hand: set(drawings._read_sheet(drawings.sheet_file(hand))) for hand in HANDS}
    held_out, known = set(held_out_contents()), set(known_contents())
    assert shipped[drawings.PLAIN_HAND] == held_out | known
    assert all(len(names & held_out) >= 45 and len(names & known) >= 30 for names in shipped.values())
    assert sum(about.held_out for about in HANDS.values()) >= 2


def test_a_sheet_holds_the_tiles_that_were_written_to_the_bit(tmp_path):
    tiles = {name: pil_from_tensor(true_images([name], "neon"))[0] for name in held_out_contents()[:23]}
    drawings.write_sheet(tmp_path / "neon.webp", tiles)
    read = drawings._read_sheet(tmp_path / "neon.webp")
    assert list(read) == list(tiles)
    again = pil_from_tensor(torch.stack(list(read.values())).float() / 255)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(again, tiles.values(), strict=True))


def changed_sheet(path, names=None, size=None):
    """A sheet of three drawings whose names or pixels are changed."""
    own = held_out_contents()[:3]
    drawings.write_sheet(path, dict(zip(own, pil_from_tensor(true_images(own)), strict=True)))
    with Image.open(path) as sheet:
        exif, pixels = sheet.getexif(), sheet.convert("RGB")
    exif[drawings.SHEET_NAMES] = json.dumps(list(own)) if names is None else names
    pixels.resize(size or pixels.size).save(path, lossless=True, exif=exif)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"names": ""}, "does not name its tiles"),
        ({"names": "[]"}, "does not name its tiles"),
        ({"names": '{"robot": 0}'}, "does not name its tiles"),
        ({"names": '["robot", "unicorn pizza", "owl"]'}, "has 'unicorn pizza', which the world has not"),
        ({"names": '["robot", "owl", "robot"]'}, "has a content twice"),
        ({"names": json.dumps(list(held_out_contents()[:25]))}, "is 2560 x 128 pixels, its 25 tiles"),
        ({"size": (20 * 64, 64)}, "is 1280 x 64 pixels, its 3 tiles of 128 x 128 make 2560 x 128"),
    ],
)
def test_a_sheet_with_other_names_or_another_size_is_refused_in_one_line(change, what, monkeypatch, tmp_path):
    monkeypatch.setattr(drawings, "full_sheet_folder", lambda: tmp_path)
    changed_sheet(tmp_path / "noto.webp", **change)
    with pytest.raises(ValueError, match=what) as caught:
        drawings._read_sheet(tmp_path / "noto.webp")
    assert "noto.webp" in str(caught.value) and "render_sheets` makes the sheets anew" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def own_sheets(monkeypatch, tmp_path):
    """An empty folder of full sheets; no sheet has been read."""
    monkeypatch.setattr(drawings, "full_sheet_folder", lambda: tmp_path)
    drawings._tiles_by_hand.cache_clear()
    yield tmp_path
    drawings._tiles_by_hand.cache_clear()


@pytest.mark.parametrize("change", ["names of other tiles", "one pixel", "a tile less"])
def test_a_sheet_of_other_drawings_than_the_bases_were_trained_on_is_refused_in_one_line(change, own_sheets):
    hand = "emojitwo-mono"
    tiles = dict(zip(contents_drawn_by(hand), pil_from_tensor(true_images(contents_drawn_by(hand), hand)), strict=True))
    drawings.write_sheet(own_sheets / f"{hand}.webp", dict(reversed(tiles.items())))
    drawings._tiles_by_hand.cache_clear()
    assert drawings.load_drawings(list(tiles)[:1], hand).shape == (1, 3, SIZE, SIZE)
    first = next(iter(tiles))
    if change == "names of other tiles":
        tiles = dict(zip(tiles, [*list(tiles.values())[1:], tiles[first]], strict=True))
    elif change == "one pixel":
        tiles[first].putpixel((64, 64), (1, 2, 3))
    else:
        del tiles[first]
    drawings.write_sheet(own_sheets / f"{hand}.webp", tiles)
    drawings._read_sheet.cache_clear()
    drawings._tiles_by_hand.cache_clear()
    with pytest.raises(ValueError, match=f"{hand}.webp holds other drawings by {hand} than .*render_sheets.*move it"):
        contents_drawn_by.__wrapped__(hand)
    drawings._read_sheet.cache_clear()


@pytest.mark.parametrize("kept", [0, 100, 20_000])
def test_a_sheet_that_is_cut_off_is_named_with_the_way_out(kept, own_sheets):
    whole = (drawings.SHEET_FOLDER / "noto.webp").read_bytes()
    (own_sheets / "noto.webp").write_bytes(whole[:kept])
    with pytest.raises(ValueError, match="noto.webp is no whole image .*render_sheets.*move it away") as caught:
        drawings.load_drawings(HERE[:1])
    assert len(str(caught.value).splitlines()) == 1
    drawings._read_sheet.cache_clear()
    (own_sheets / "noto.webp").unlink()


@pytest.mark.parametrize("change", [lambda names: names[::-1], lambda names: names[:-1], lambda names: "none"])
def test_contents_in_another_order_which_would_move_the_held_out_ones_are_refused(change, monkeypatch, tmp_path):
    (tmp_path / "contents.json").write_text(json.dumps(change(list(contents()))))
    monkeypatch.setattr(drawings, "SHEET_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="contents.json lists other contents .*install the package anew"):
        contents.__wrapped__()


def test_a_sheet_in_another_order_holds_the_same_drawings(tmp_path):
    names = held_out_contents()[:22]
    tiles = dict(zip(names, pil_from_tensor(true_images(names)), strict=True))
    drawings.write_sheet(tmp_path / "one.webp", tiles)
    drawings.write_sheet(tmp_path / "two.webp", {name: tiles[name] for name in reversed(names)})
    one, two = (drawings._read_sheet(tmp_path / f"{name}.webp") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in names)


@pytest.fixture(scope="module")
def first_edition(tmp_path_factory):
    """A pico base that says what the first edition's said of themselves: pre-trained at 64 x 64 pixels alone."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-sdxl"
    shutil.copytree(pico.folder("sdxl"), folder)
    settings = json.loads((folder / "qrlora.json").read_text())
    settings["defaults"]["train"]["resolution"] = 64
    (folder / "qrlora.json").write_text(json.dumps({**settings, "framing": "plain"}))
    return folder


def test_a_base_of_one_edition_is_refused_with_the_world_of_another(first_edition, tmp_path):
    """By the demonstration, comparisons, reproductions and scores, before anything is trained; not the pico base."""
    message = (
        "tiny-sdxl was pre-trained on images of 64 x 64 pixels, another edition .* 128 x 128: take a base of today's"
    )
    request = ReproductionRequest(base=str(first_edition), pairs=1, folder=tmp_path / "out", device="cpu")
    calls = (
        lambda: demo.demo(tmp_path / "demo", base=str(first_edition), device="cpu"),
        lambda: plan_comparison(ComparisonSettings(base=str(first_edition), pairs=1, device="cpu")),
        lambda: base_scores.base_scores(open_base(first_edition), 1),
        lambda: CrossedAdapters(CrossedSettings(root=tmp_path, base=str(first_edition))),
        *(lambda name=name: reproduce(name, request) for name in ("crossed", "attributes", "measures", "figure7")),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.rglob("*.safetensors"))
    check_edition_of_base(open_base(pico.folder("sdxl")))


def test_pre_training_does_not_start_from_a_base_of_another_family_or_edition(first_edition, two_steps):
    for start, what in (
        (first_edition, "tiny-flux is a FluxPipeline, this is StableDiffusionXLPipeline"),
        (pico.folder("flux"), "has another shape than today's tiny-flux, as bases of another edition have"),
        (first_edition.parent, "this is no pipeline's folder"),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            pretrain.PretrainingRun("tiny-flux", dataclasses.replace(two_steps, start=str(start)), "cpu")
        assert len(str(caught.value).splitlines()) == 1


def test_a_drawing_that_only_the_full_sheets_have_is_named_with_the_way_to_them(monkeypatch, tmp_path):
    monkeypatch.setattr(drawings, "full_sheet_folder", lambda: tmp_path)
    drawings._tiles_by_hand.cache_clear()
    missing = next(name for name in known_contents() if name not in drawings._tiles_by_hand("fluent"))
    with pytest.raises(ValueError, match="qrlora.world.render_sheets"):
        drawings.load_drawings([missing], "fluent")
    drawings._tiles_by_hand.cache_clear()


@pytest.mark.parametrize("style", ALL_STYLES)
def test_a_style_is_a_function_of_one_image_alone(style):
    """The same image in another batch, or the second time, has the same answer: else no image would be true."""
    names = list(held_out_contents()[::8])
    together = true_images(names, style)
    assert together.shape == (len(names), 3, SIZE, SIZE) and 0 <= together.min() and together.max() <= 1
    torch.testing.assert_close(together[2:3], true_images(names[2:3], style), rtol=0, atol=1.01 / 255)


def test_no_two_styles_draw_a_content_alike():
    drawn = torch.stack([true_images(held_out_contents()[:8], style) for style in ALL_STYLES]).flatten(1)
    distance = torch.cdist(drawn, drawn) / drawn.shape[1] ** 0.5
    distance.fill_diagonal_(1)
    assert distance.min() > 0.05


def test_an_unknown_content_or_style_is_named():
    with pytest.raises(ValueError, match="no content 'unicorn pizza'"):
        true_images(["unicorn pizza"])
    with pytest.raises(ValueError, match="no style 'baroque'"):
        true_images(held_out_contents()[:1], "baroque")


def test_true_pictures_is_the_old_name_of_true_images():
    with pytest.warns(DeprecationWarning, match="true_pictures is now true_images; the old name goes with 0.3"):
        old = world.true_pictures(held_out_contents()[:2], "neon")
    assert torch.equal(old, true_images(held_out_contents()[:2], "neon"))


def test_every_caption_of_training_fits_the_text_encoders():
    """The longest names in every style's and hand's words: none is cut."""
    generator = torch.Generator().manual_seed(0)
    longest = sorted(contents(), key=lambda name: len(name.split()))[-12:]
    hands = [hand for hand, about in HANDS.items() if not about.held_out]
    captions = {
        training_caption(name, style, hand, generator) for name in longest for style in STYLES for hand in hands
    }
    for tokenizer in (clip_tokenizer(), t5_tokenizer()):
        assert max(len(tokenizer(text).input_ids) for text in captions) <= TEXT_LENGTH


def test_the_tokenizers_of_the_world_are_those_of_the_bases_that_ship():
    """Learnt twice they would number their tokens in two ways, and a base would read words that it never saw."""
    own = json.loads((TOKENIZER_FOLDER / "tokenizer.json").read_bytes())["model"]
    pieces = json.loads(t5_tokenizer().backend_tokenizer.to_str())["model"]
    of_base = {"tiny-sdxl": (own, own), "tiny-sd3": (own, own, pieces), "tiny-flux": (own, pieces)}
    for base, models in of_base.items():
        for name, model in zip(("tokenizer", "tokenizer_2", "tokenizer_3"), models, strict=False):
            assert json.loads((folder_of(base) / name / "tokenizer.json").read_bytes())["model"] == model


def test_a_tenth_of_the_training_captions_is_empty_and_of_the_rest_a_fifth_has_no_content_and_a_tenth_no_style():
    generator = torch.Generator().manual_seed(0)
    drawn = [training_caption("owl", "neon", "noto", generator) for _ in range(4000)]
    assert abs(drawn.count("") / 4000 - 0.10) < 0.02
    assert abs(sum("<c>" in d for d in drawn) / 3600 - 0.20) < 0.02
    assert abs(sum("<s>" in d for d in drawn) / 3600 - 0.10) < 0.02


def test_captions_name_a_style_in_other_words_too_and_in_several_forms():
    """Each of a style's names is met, its own most often, and none that belongs to another style."""
    generator = torch.Generator().manual_seed(0)
    drawn = [training_caption("owl", "gold", "noto", generator) for _ in range(1000)]
    for words in ("gold", *SYNONYMS["gold"]):
        assert sum(words in d for d in drawn) > 50, words
    assert len(set(drawn)) > 20
    every = {words for words in SYNONYMS.values() for words in words}
    assert len(every) == sum(map(len, SYNONYMS.values()))


@pytest.mark.parametrize("hand", [hand for hand, about in HANDS.items() if not about.held_out])
def test_the_usual_caption_of_a_hands_drawing_is_one_that_training_draws(hand):
    """Else no base was ever shown it; the plain hand's drawings are plain."""
    generator = torch.Generator().manual_seed(0)
    assert caption("owl", hand) in {training_caption("owl", "plain", hand, generator) for _ in range(200)}


@pytest.mark.parametrize("name", SYNONYMS)
def test_every_other_name_of_a_style_or_a_hand_is_met_in_training(name):
    generator = torch.Generator().manual_seed(0)
    style, hand = ("plain", name) if name in HANDS else (name, drawings.PLAIN_HAND)
    drawn = {training_caption("owl", style, hand, generator) for _ in range(1000)}
    assert all(any(words in d for d in drawn) for words in SYNONYMS[name])


def test_no_random_style_is_nearer_to_a_held_out_style_than_a_style_with_a_word_is():
    """On drawings that the choice was not made on, within a tenth: the held-out styles are new to every base."""
    generator, names = torch.Generator().manual_seed(0), HERE[1::4]
    drawn = torch.stack([random_style(generator)(true_images(names)).clamp(0, 1) for _ in range(150)]).flatten(1)
    worded, hidden = (
        torch.stack([true_images(names, style) for style in styles]).flatten(1) for styles in (STYLES, HELD_OUT_STYLES)
    )
    assert (torch.cdist(hidden, drawn).amin(1) > 0.9 * torch.cdist(hidden, worded).amin(1)).all()


def test_random_styles_differ_from_each_other_and_come_again_from_the_same_seed():
    names = HERE[:4]
    first, again = (
        [random_style(g)(true_images(names)) for _ in range(30)]
        for g in (torch.Generator().manual_seed(3), torch.Generator().manual_seed(3))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn = torch.stack(first).flatten(1)
    distance = torch.cdist(drawn, drawn) / drawn.shape[1] ** 0.5
    distance.fill_diagonal_(1)
    assert distance.min() > 0.03


def stock_vae(base):
    """The VAE of a base, in float32 as built-in bases decode; tiny-flux has tiny-sd3's."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny.from_pretrained(folder_of(base) / "vae", torch_dtype=torch.float32)


@torch.no_grad()
def round_trip_psnr(vae, images):
    """Of each image after the VAE's round trip, in dB."""
    again = vae.decode(vae.encode(images * 2 - 1).latents).sample / 2 + 0.5
    return -10 * (again.clamp(0, 1) - images).square().flatten(1).mean(1).log10()


@pytest.mark.parametrize("base", ["tiny-sd3", "tiny-sdxl"])
def test_the_stock_vae_gives_drawings_back_at_30_db_and_black_ones_at_28(base):
    """Of held-out contents by every hand."""
    vae = stock_vae(base)
    drawn = {
        hand: true_images([n for n in held_out_contents() if n in contents_drawn_by(hand)][::20], hand)
        for hand in HANDS
    }
    black = {hand: drawn.pop(hand) for hand in ("emojitwo-mono", "fluent-contrast")}
    coloured = torch.cat([images[::2] for images in drawn.values()])
    assert round_trip_psnr(vae, coloured).mean() >= 30
    assert all(round_trip_psnr(vae, images).mean() >= 28 for images in black.values())
    with torch.no_grad():
        latents = vae.encode(coloured * 2 - 1).latents * vae.config.scaling_factor
    assert 0.7 < float(latents.std()) < 1.4


@pytest.mark.parametrize("base", ["tiny-sd3", "tiny-sdxl"])
def test_the_stock_vae_gives_images_in_every_known_style_back_as_its_card_says(base):
    """In the mean; the card's are other contents, hence 1.5 dB."""
    vae = stock_vae(base)
    found = torch.cat([round_trip_psnr(vae, true_images(known_contents()[20::200], style)) for style in STYLES])
    recorded = json.loads((folder_of(base) / "scores.json").read_text())["base"]["vae_psnr"]
    assert abs(float(found.mean()) - recorded) < 1.5


@pytest.mark.parametrize("base", built_in_bases())
def test_an_image_of_a_built_in_base_in_bfloat16_is_float32s_to_40_db(base):
    drawn = [
        tensor_from_pil(generate(open_base(base, "cpu", dtype), caption("castle", "neon"), steps=8))
        for dtype in ("float32", "bfloat16")
    ]
    assert -10 * (drawn[0] - drawn[1]).square().mean().log10() >= 40


def test_muon_steps_as_torchs_own_does():
    """torch.optim.Muon orthogonalises in bfloat16: equal to its rounding, for wide, square and tall matrices."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(32, 48), (32, 32), (48, 32), (32, 48)]
    ours, theirs = (
        [torch.nn.Parameter(torch.randn(s, generator=g)) for s in shapes]
        for g in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1))
    )
    own = muon.Muon(ours, lr=0.01, weight_decay=0.1)
    stock = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = [p.detach().clone() for p in ours]
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        own.step()
        stock.step()
    for a, b, start in zip(ours, theirs, before, strict=True):
        assert float(((a - b).norm() / (a - start).norm()).detach()) < 0.02


def test_muon_takes_a_convolutions_weight_as_the_matrix_of_its_filters():
    """In any memory format, as torch's own does with the matrix (o, i h w)."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(40, 16, 3, 3, generator=generator)
    weight = torch.nn.Parameter(start.to(memory_format=torch.channels_last))
    matrix = torch.nn.Parameter(start.flatten(1).clone())
    own = muon.Muon([weight], lr=0.01, weight_decay=0.1)
    stock = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(start.shape, generator=generator)
        weight.grad, matrix.grad = gradient.to(memory_format=torch.channels_last), gradient.flatten(1)
        own.step()
        stock.step()
    assert float(((weight.flatten(1) - matrix).norm() / (matrix - start.flatten(1)).norm()).detach()) < 0.02


def test_pretraining_orthogonalises_the_convolutions_of_blocks():
    run = pretraining_state.PretrainingRun("tiny-sdxl", pretrain.PretrainingSettings(), "cpu")
    names = {id(p): name for name, p in run.weights.items()}
    (inner,), (rest,) = (optimizer.param_groups for optimizer in run.optimizers)
    inner, rest = ({names[id(p)] for p in group["params"]} for group in (inner, rest))
    assert "unet.down_blocks.0.resnets.0.conv1.weight" in inner and "unet.conv_in.weight" in rest
    assert not inner & rest and inner | rest == set(run.weights)


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = (
        torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 3)[:, None, None]
    )
    values = torch.linalg.svdvals(muon.orthogonalize(matrices))
    assert 0.6 < float(values.min()) and float(values.max()) < 1.3


@pytest.mark.parametrize("base", ARCHITECTURES)
def test_captions_are_encoded_in_training_as_the_stock_pipeline_encodes_them(base):
    pipe = open_base(base, dtype="float32").pipe
    family = next(f for f in FAMILIES.values() if f.pipeline == type(pipe).__name__)
    captions = ["a dog face in neon style", "<c>, <s>", ""]
    architecture = ARCHITECTURES[base]
    with torch.no_grad():
        stock = family.encode_prompt(pipe, captions, SizeConditioning.uncropped(SIZE, SIZE)).tensors
        ours = architecture.encode(pipe, architecture.tokenize(pipe, captions))
    assert stock.keys() == ours.keys()
    for name, tensor in stock.items():
        torch.testing.assert_close(ours[name].float(), tensor.float())


def test_a_batch_has_its_share_of_every_kind_and_random_styles_have_no_word():
    data = few_latents("tiny-sd3")
    rows = data.sample_rows(200, torch.Generator().manual_seed(0))
    for k, share in enumerate(pretraining_set.BATCH_SHARES.values()):
        assert abs(float(((rows // 2) == k).float().mean()) - share) < 0.01
    assert data.labels(6)[1] == "<s>" and data.labels(2)[1] in STYLES


def test_a_training_set_holds_the_latents_of_true_images(monkeypatch):
    """Row by row those of the content, by the hand, in the style that it names."""
    few = tuple(HERE[:2])
    monkeypatch.setattr(pretraining_set, "known_contents", lambda: few)
    monkeypatch.setattr(pretraining_set, "STYLES", {name: STYLES[name] for name in ("plain", "neon")})
    vae = open_base("tiny-sd3", dtype="float32").pipe.vae
    data = pretraining_set.build_training_set(vae, 5, 25, 0, "cpu", log=lambda _: None)
    assert list(data.kinds) == list(pretraining_set.BATCH_SHARES)
    for row in (0, data.kinds["styles"][0], data.kinds["styled hands"][0] + 1):
        content, style, hand = data.labels(row)
        image = true_images([content], style, hand)
        with torch.no_grad():
            expected = vae.encode(image * 2 - 1).latents[0] * vae.config.scaling_factor
        torch.testing.assert_close(data.latents[row].float(), expected, rtol=2e-3, atol=2e-3)
    assert (data.style[slice(*data.kinds["random"])] == -1).all()


def test_a_training_set_of_other_sheets_or_counts_is_refused_in_one_line(tmp_path):
    pretraining_set.save_training_set(tmp_path / "set.safetensors", few_latents("tiny-sd3"), "one")
    kept = pretraining_set.load_training_set(tmp_path / "set.safetensors", "one")
    assert torch.equal(kept.latents, few_latents("tiny-sd3").latents) and kept.kinds == few_latents("tiny-sd3").kinds
    with pytest.raises(ValueError, match="other sheets"):
        pretraining_set.load_training_set(tmp_path / "set.safetensors", "another")


def test_a_run_does_not_go_on_from_another_runs_checkpoint(tmp_path, two_steps):
    """Another dtype, rate or seed is named; more samples are not another run."""
    pretrain.pretrain("tiny-flux", tmp_path, dataclasses.replace(two_steps, samples=6), "cpu", 100, float("inf"))
    for changed in ({"dtype": "bfloat16"}, {"learning_rate": 0.5}, {"seed": 3}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            settings = dataclasses.replace(two_steps, **changed)
            pretrain.pretrain("tiny-flux", tmp_path, settings, "cpu", 100, float("inf"))
    longer = pretrain.pretrain("tiny-flux", tmp_path, two_steps, "cpu", 100, float("inf"))
    assert longer.step == 4
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 4], "a run of few steps has a log, which its export needs"
    other = pretrain.PretrainingRun("tiny-flux", two_steps, "cpu")
    other.training_set = "0123456789abcdef"
    with pytest.raises(ValueError, match="was trained on other images than this run has, from other sheets") as caught:
        other.load(tmp_path / "last.pt")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("base", ["tiny-sd3", "tiny-sdxl"])
def test_pre_training_in_bfloat16_takes_float32s_steps_to_its_rounding(base, two_steps):
    data, losses = few_latents(base), {}
    for dtype in ("float32", "bfloat16"):
        run = pretrain.PretrainingRun(base, dataclasses.replace(two_steps, dtype=dtype), "cpu")
        losses[dtype] = [
            float(pretrain.training_step(run, data, pretrain.sample_batch(run, data, k))) for k in range(2)
        ]
        assert all(weight.dtype == torch.float32 for weight in run.weights.values())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)


@pytest.mark.parametrize("base", ["tiny-sd3", "tiny-sdxl"])
def test_parts_of_a_pretraining_batch_add_up_to_its_step(base, two_steps, monkeypatch):
    """Loss and gradients of 6 images at once are those of 4 and 2, to float32's rounding."""
    found = {}
    for size in (6, 4):
        monkeypatch.setattr(pretraining_state, "CPU_PART", size)
        run = pretrain.PretrainingRun(base, two_steps, "cpu")
        monkeypatch.setattr(run, "optimizer_step", lambda: None)
        data = few_latents(base)
        loss = pretrain.training_step(run, data, pretrain.sample_batch(run, data, 0))
        found[size] = loss, torch.cat([p.grad.flatten() for p in run.weights.values() if p.grad is not None])
    (whole, gradient), (parts, summed) = found[6], found[4]
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)
    assert float((summed - gradient).norm() / gradient.norm()) < 1e-4


def test_pretraining_can_start_from_a_finished_base(two_steps):
    """Every weight, text encoders and VAE too, is the base's; the same family built anew is not."""
    run = pretrain.PretrainingRun("tiny-flux", dataclasses.replace(two_steps, start=str(folder_of("tiny-flux"))), "cpu")
    kept = load_file(folder_of("tiny-flux") / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, weight in run.pipe.transformer.state_dict().items():
        assert torch.equal(weight, kept[name].float()), name


def test_a_base_that_went_on_is_written_as_it_was_but_for_what_was_trained(tmp_path, two_steps):
    """Tokenizers to the byte, though captions were padded with them; no file names a folder of the machine."""
    start = folder_of("tiny-flux")
    run = pretrain.PretrainingRun("tiny-flux", dataclasses.replace(two_steps, start=str(start)), "cpu")
    data = few_latents("tiny-flux")
    pretrain.training_step(run, data, pretrain.sample_batch(run, data, 0))
    base_export.write_pipeline(run, tmp_path)
    for path in start.rglob("tokenizer.json"):
        assert (tmp_path / path.relative_to(start)).read_bytes() == path.read_bytes(), path
    texts = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert texts and not any('"_name_or_path"' in text or str(start.parent) in text for text in texts)
    for encoder in tmp_path.glob("text_encoder*/config.json"):
        assert json.loads(encoder.read_text())["dtype"] == "float32"
    torch.testing.assert_close(
        open_base(str(tmp_path)).pipe.vae.state_dict(), open_base("tiny-flux").pipe.vae.state_dict()
    )


def test_a_learning_curve_ends_in_the_scores_of_the_base_that_the_run_would_write(tmp_path, two_steps):
    """A run that has just started from a finished base has that base's scores; an untrained one has few."""
    started = dataclasses.replace(two_steps, start=str(folder_of("tiny-flux")))
    run = pretrain.PretrainingRun("tiny-flux", started, "cpu")
    run.training_set = "a set of images that is not here"
    run.save(tmp_path / "started.pt")
    pretrain.pretrain("tiny-flux", tmp_path, two_steps, "cpu", 100, float("inf"), keep=3)
    checkpoints = [tmp_path / "step-3.pt", tmp_path / "started.pt"]
    first, last = base_scores.learning_curve_scores("tiny-flux", checkpoints, captions=2)
    assert first == {"samples": 0, **base_scores.base_scores(open_base("tiny-flux"), 2)} and first["style"] > 0.7
    assert last["samples"] == 18 and last["style"] < 0.5


class Stopped(Exception):
    """A run is stopped here."""


@pytest.mark.processes
@pytest.mark.parametrize("base", ARCHITECTURES)
def test_pretraining_that_was_stopped_and_resumed_ends_in_the_same_files(base, tmp_path, two_steps, monkeypatch):
    """Stopped in its fourth step, a row of the log past its checkpoint: weights, average, losses, what is exported."""
    monkeypatch.setattr(pretrain, "LOG_EVERY", 1)
    runs = {"whole": pretrain.pretrain(base, tmp_path / "whole", two_steps, "cpu", 100, float("inf"))}
    step = pretrain.training_step

    def step_or_stop(run, *rest):
        if run.step == 3:
            raise Stopped
        return step(run, *rest)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(pretrain, "training_step", step_or_stop)
        pretrain.pretrain(base, tmp_path / "cut", two_steps, "cpu", 2, float("inf"))
    assert len((tmp_path / "cut" / "log.jsonl").read_text().splitlines()) == 3
    runs["cut"] = pretrain.pretrain(base, tmp_path / "cut", two_steps, "cpu", 100, float("inf"))
    whole, resumed = runs.values()
    assert resumed.step == whole.step == 4
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
        assert torch.equal(whole.average[name], resumed.average[name]), name
    records = [
        base_export.export_base(run, tmp_path / name / "log.jsonl", tmp_path / name / base)
        for name, run in runs.items()
    ]
    assert [len(record["loss"]) for record in records] == [4, 4] and records[0]["loss"] == records[1]["loss"]
    one, other = (
        {p.relative_to(f): p for p in f.rglob("*") if p.is_file()}
        for f in (tmp_path / "whole" / base, tmp_path / "cut" / base)
    )
    assert one.keys() == other.keys()
    for path in one.keys() - {Path("training.json")}:  # which says how long it took
        assert one[path].read_bytes() == other[path].read_bytes(), path


def test_the_classifiers_are_as_accurate_and_as_strict_as_their_file_says():
    """On fresh images: accuracy on unseen pairs, and how many wrong fusions pass."""
    recorded = classifiers.measured_quality()
    again = classifier_training.measure_classifiers(classifiers.load_classifiers(), groups=10, seed=5)
    for name in ("content", "style"):
        assert again["accuracy"][name] > recorded["accuracy"][name] - 0.06
        assert again["false_alarms"][name] < recorded["false_alarms"][name] + 0.15
    assert recorded["accuracy"]["content"] > 0.9 and recorded["accuracy"]["style"] > 0.95


def test_the_content_classifier_sees_no_content_in_plain_colours_gradients_and_noise():
    """Nothing of the world's; screenshots and contact sheets it may name, see docs/measures.md."""
    generator = torch.Generator().manual_seed(0)
    colours = [Image.new("RGB", (SIZE, SIZE), x) for x in ("white", "black", "grey", "red", "blue", "yellow", "pink")]
    gradients = [Image.linear_gradient("L"), Image.radial_gradient("L")]
    noise = pil_from_tensor(torch.rand(3, 3, SIZE, SIZE, generator=generator))
    seen = classifiers.classify(tensor_from_pil([*colours, *gradients, *noise]))
    assert {x.content for x in seen} == {classifiers.NONE}


def views_of(photograph):
    """As a person might cut it: the middle square, mirrored, in grey, the whole on white, the middle half, a corner."""
    side = min(photograph.size)
    middle, whole = ImageOps.fit(photograph, (side, side)), (max(photograph.size),) * 2
    half = middle.crop((side // 4, side // 4, 3 * side // 4, 3 * side // 4))
    grey, corner = middle.convert("L").convert("RGB"), photograph.crop((0, 0, side // 2, side // 2))
    views = (middle, ImageOps.mirror(middle), grey, ImageOps.pad(photograph, whole, color="white"), half, corner)
    return [view.resize((SIZE, SIZE), Image.Resampling.LANCZOS) for view in views]


def test_what_the_classifiers_see_in_photographs_is_often_nothing_and_never_sure():
    """Of scikit-learn's two, as docs/measures.md says; so the demo lets them judge no image of one's own."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    seen = classifiers.classify(tensor_from_pil([view for photograph in photographs for view in views_of(photograph)]))
    assert len(seen) == 12
    assert sum(x.content == classifiers.NONE for x in seen) >= 6 and sum(x.style == classifiers.NONE for x in seen) >= 4
    assert all(x.content_probability < 0.5 for x in seen if x.content != classifiers.NONE)


def test_every_hand_counts_as_the_plain_style_for_the_style_classifier():
    """Probabilities add up: those of the hands are the plain style's."""
    scores = torch.randn(4, len(classifiers.style_class_names()) + 1, generator=torch.Generator().manual_seed(0))
    p = classifiers.probabilities_by_style(scores)
    torch.testing.assert_close(p.sum(1), torch.ones(4))
    torch.testing.assert_close(p[:, 0], scores.softmax(1)[:, [0, *range(len(ALL_STYLES), scores.shape[1] - 1)]].sum(1))


@pytest.mark.parametrize("folder", built_in_bases().values(), ids=lambda p: p.name)
def test_a_built_in_base_is_a_stock_pipeline_of_at_most_20_mb(folder, tmp_path):
    import zipfile

    import diffusers

    with zipfile.ZipFile(tmp_path / "wheel.zip", "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in folder.rglob("*"):
            wheel.write(path)
    assert (tmp_path / "wheel.zip").stat().st_size <= 20e6
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, kind).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    # SDXL's pipeline has no such option; the others' T5 was never shown longer prompts
    short = {} if kind == "StableDiffusionXLPipeline" else {"max_sequence_length": TEXT_LENGTH}
    (image,) = pipe(
        caption("rocket", "neon"),
        num_inference_steps=16,
        height=SIZE,
        width=SIZE,
        generator=torch.Generator().manual_seed(0),
        **short,
    ).images
    assert classifiers.classify(tensor_from_pil([image]))[0].style == "neon"
    learns = json.loads((folder / "qrlora.json").read_text())["defaults"]["train"]
    assert learns["rank"] and learns["targets"]


@pytest.mark.parametrize("folder", built_in_bases().values(), ids=lambda p: p.name)
def test_a_model_card_is_the_one_that_is_generated_from_the_bases_records(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / folder.name)
    assert write_card(copied).read_bytes() == (folder / "README.md").read_bytes()


def test_predictions_on_ones_own_images_are_neither_right_nor_wrong(monkeypatch, tmp_path):
    """So the classifiers' word on images trained from it is neither right nor wrong."""
    Image.new("RGB", (SIZE, SIZE), "red").save(tmp_path / "own.png")
    own = demo.DemoInput(image=tmp_path / "own.png", template="a {} in plain style")
    monkeypatch.setattr(demo, "generate", lambda *_, **__: [Image.new("RGB", (SIZE, SIZE))])
    base = SimpleNamespace(defaults=SimpleNamespace(resolution=SIZE))
    adapters = [SimpleNamespace(header=SimpleNamespace(trigger=word)) for word in ("<c>", "<s>")]
    rows = {row.title.split(":")[0]: row for row in demo._generate_rows(base, (own, own), adapters, None, 1, 0, None)}
    for row in (rows["the subject alone"], rows[demo.MERGED]):
        assert row.is_correct(row.predictions[0]) is None


def test_an_adapter_of_an_earlier_edition_of_a_built_in_base_is_refused_with_the_way_out():
    """Its layers have the shapes of today's, so that nothing else would tell."""
    base = open_base("tiny-flux", dtype="float32")
    layer = "transformer_blocks.0.attn.add_q_proj"
    o, i = base.weight(layer).shape
    layers = {layer: Pair(torch.zeros(2, i), torch.zeros(o, 2))}
    own = fingerprint([(layer, base.weight(layer))])
    header = Header(family="flux", component="transformer", base="tiny-flux", role="content", fingerprint=own)
    adapter_compatibility.check_adapter_fits_base(base, Adapter(layers, header))
    other = dataclasses.replace(header, fingerprint={layer: 1.1 * own[layer]})
    with pytest.raises(ValueError, match="content adapter was trained on tiny-flux of another version.*train it again"):
        adapter_compatibility.check_adapter_fits_base(base, Adapter(layers, other))
