"""`qrlora decompose`: of two adapter files, drawn apart on words that their base knows, the weak one is named."""

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from commands import run
from qrlora import files, optional_dependencies
from qrlora.comparison import two_adapters
from qrlora.comparison.decomposition import BASE_ALONE
from qrlora.comparison.known_word_scale import (
    ROLES,
    classifiers_as_judges,
    known_word_pairs,
    known_word_scale,
)
from qrlora.comparison.weak_adapter import CLEAR, needed_difference, verdict
from qrlora.config import TrainConfig
from qrlora.families import open_base
from qrlora.merging import merge
from qrlora.training import train
from qrlora.world.captions import CONTENT_TRAINING_PROMPT, caption, known_words
from qrlora.world.ground_truth import true_image

CONTENTS, STYLES = ("cat", "tree", "chair"), ("mosaic", "blueprint")


def drawing(content, style):
    """An image that carries two words in its first pixels."""
    image = Image.new("RGB", (16, 16))
    image.putpixel((0, 0), (content, style, 0))
    return image


def seeing_judge(role):
    """Features of an image: its word of the role, and a share that all images have."""

    def features(images):
        words = [image.getpixel((0, 0))[ROLES.index(role)] for image in images]
        return F.normalize(F.one_hot(torch.tensor(words), 12) + 0.3, dim=1)

    return features


@pytest.mark.parametrize("role", ROLES)
def test_a_score_is_1_where_the_picture_is_met_as_a_known_word_is_and_0_where_it_is_not(role):
    pairs = known_word_pairs(CONTENTS, STYLES)
    names = (*CONTENTS, *STYLES)
    images = [drawing(*map(names.index, pair)) for pair in pairs]
    scale = known_word_scale(seeing_judge(role), role, pairs, images)
    assert scale.spread == pytest.approx(0, abs=1e-6)
    learnt, other = drawing(9, 9), drawing(8, 8)
    assert scale.scores([learnt, other, images[0]], learnt) == pytest.approx([1, 0, 0], abs=1e-6)


def test_a_judge_that_does_not_see_the_role_spreads_so_that_it_names_nobody():
    """It likens images by chance, by the other role, or all the same."""
    contents, styles = [f"thing {k}" for k in range(6)], [f"style {k}" for k in range(6)]
    pairs = known_word_pairs(contents, styles)
    images = [drawing(contents.index(content), styles.index(style)) for content, style in pairs]
    noise = F.normalize(torch.randn(len(pairs), 8), dim=1)
    for blind in (lambda images: noise, seeing_judge("content"), lambda images: torch.ones(len(images), 1)):
        assert needed_difference(2 * known_word_scale(blind, "style", pairs, images).spread, 0) > 0.5


def test_known_words_are_drawn_each_with_two_of_the_other_role():
    for contents, styles in ((2, 2), (6, 6), (6, 2), (2, 5), (3, 4)):
        pairs = known_word_pairs([f"thing {k}" for k in range(contents)], [f"style {k}" for k in range(styles)])
        assert len(set(pairs)) == len(pairs) <= 2 * max(contents, styles)
        for place, count in ((0, contents), (1, styles)):
            words = [pair[place] for pair in pairs]
            assert len(set(words)) == count and min(map(words.count, words)) >= 2


def test_a_verdict_names_the_weak_adapter_with_its_numbers_and_none_where_two_are_close():
    without = {"content": 0.1, "style": 0.05}
    said = verdict({"content": 0.83, "style": 0.41}, CLEAR, without)
    assert said == (
        "The style adapter is the weak one: the style comes out on known things at 0.41 (0.05 without its adapter), "
        "the content comes out in known styles at 0.83 (0.10 without its adapter)."
    )
    assert verdict({"content": 0.2, "style": 0.9}, CLEAR).startswith("The content adapter is the weak one: the content")
    for needed, scores in ((CLEAR, {"content": 0.7, "style": 0.55}), (0.6, {"content": 0.2, "style": 0.7})):
        close = verdict(scores, needed)
        assert close.startswith("Too close to say") and close.endswith(f"they would have to differ by {needed:.2f}.")
        assert f"{scores['content']:.2f}" in close and f"{scores['style']:.2f}" in close
    assert verdict({"content": 0, "style": 1}, 2.83).endswith("differ too much for any two scores to tell.")


def test_words_to_draw_are_known_and_not_those_of_the_training_prompts():
    for role in ROLES:
        known = known_words(role)
        found = two_adapters.words_to_draw("tiny-flux", True, role, (), [f"a {known[3]} in {known[5]} style"])
        assert len(set(found)) == two_adapters.WORDS and set(found) <= set(known) - {known[3], known[5]}
        assert len(two_adapters.words_to_draw("OWNER/NAME", False, role, (), ["a dog"])) == two_adapters.WORDS
    two = two_adapters.words_to_draw("OWNER/NAME", False, "content", (), ["a bicycle, a teapot, a cat and a tree"])
    assert two == ["lighthouse", "chair"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An open base, the two pictures, and of each role an adapter of enough updates and one of 2."""
    folder, base = tmp_path_factory.mktemp("trained"), open_base("tiny-flux", "cpu")
    pictures = {"content": true_image("brick", "plain"), "style": true_image("aquarius", "screen")}
    prompts = {"content": CONTENT_TRAINING_PROMPT, "style": caption("aquarius", "<s>")}
    adapters = {}
    for role, enough in (("content", 30), ("style", 20)):
        pictures[role].save(folder / f"{role}.png")
        for name, steps in (("good", enough), ("bad", 2)):
            told = {"image": folder / f"{role}.png", "prompt": prompts[role], "role": role, "steps": steps}
            config = TrainConfig(**told, batch_size=4, device="cpu", output=folder / f"{role}-{name}.safetensors")
            adapters[role, name] = train(config, base=base, progress=False)
    return base, pictures, adapters


@pytest.mark.parametrize("content, style", [("good", "bad"), ("bad", "good"), ("good", "good")])
def test_the_adapter_of_two_updates_is_named_and_neither_of_two_good_ones(content, style, trained):
    """On two things and in two styles, with few denoising steps."""
    base, pictures, adapters = trained
    both = adapters["content", content], adapters["style", style]
    pair = two_adapters.AdapterPair(*both, words={"content": "<c>", "style": "<s>"})
    known = {"content": ["guitar", "child"], "style": ["blueprint", "halftone"]}
    parts = {BASE_ALONE, *two_adapters.WITHOUT.values(), *two_adapters.ALONE.values()}
    prompts = [x for x in two_adapters.prompts_to_draw(pair, known, 0) if x.part in parts]
    images = two_adapters.draw_parts(base, pair, prompts, {"steps": 4})
    pairs = known_word_pairs(*known.values())
    said = two_adapters.score_parts(images, pairs, pictures, classifiers_as_judges()).verdict()
    weak = {"good bad": "The style adapter is", "bad good": "The content adapter is", "good good": "Too close"}
    assert said.startswith(weak[f"{content} {style}"]), said


def decompose(capsys, content, studio, *words):
    """(exit code, standard output, standard error) of the verb with few words and steps."""
    few = ["--things", "cat,tree", "--styles", "mosaic,neon", "--steps", 1, "--device", "cpu"]
    return run(capsys, "decompose", content, studio / "cat.safetensors", *few, *words)


def small_encoder(folder):
    """A vision network with random weights, in a folder."""
    import transformers

    size: Any = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    config = transformers.ViTConfig(**size, patch_size=16)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_the_sheet_the_table_and_the_verdict_are_there_with_the_pictures_beside_the_files(studio, tmp_path, capsys):
    """Both pictures are found by the names in the adapters' headers."""
    encoder = small_encoder(tmp_path / "dino")
    code, out, err = decompose(
        capsys, studio / "dog.safetensors", studio, "--encoders", encoder, "-o", tmp_path / "a.png"
    )
    assert code == 0, err
    assert Image.open(tmp_path / "a.png").height > 1000
    lines = out.splitlines()
    assert any(line.split()[:5] == ["the", "content", "in", "known", "styles"] for line in lines)
    assert any("is the weak one: " in line or line.startswith("Too close to say") for line in lines)
    assert lines[-1].endswith("a.png") and "warning" not in err


def test_without_a_judge_a_line_says_why_and_the_sheet_is_drawn_all_the_same(studio, tmp_path, capsys, monkeypatch):
    """Without hub and extra, and without the picture beside the file."""
    real = optional_dependencies.version_of
    monkeypatch.setattr(optional_dependencies, "version_of", lambda name: "" if "efficientnet" in name else real(name))
    shutil.copy(studio / "dog.safetensors", tmp_path / "elsewhere.safetensors")
    cases = {
        studio / "dog.safetensors": ("the hub cannot be reached", 'pip install "qrlora[encoders]"'),
        tmp_path / "elsewhere.safetensors": ("dog.png, which", "give it with --content-image"),
    }
    for content, reasons in cases.items():
        code, out, err = decompose(capsys, content, studio, "-o", tmp_path / "a.png", "--overwrite")
        assert code == 0 and out == f"{tmp_path / 'a.png'}\n" and (tmp_path / "a.png").is_file(), err
        assert err.count("warning: ") == 1 and all(reason in err for reason in reasons), err
        (tmp_path / "a.png").unlink()


def test_a_picture_whose_name_has_a_comma_is_found_beside_the_file(studio, tmp_path, capsys):
    (tmp_path / "dog, sitting.png").write_bytes((studio / "dog.png").read_bytes())
    adapter = tmp_path / "dog.safetensors"
    told = [f"image={tmp_path / 'dog, sitting.png'}", "role=content", "steps=1", "rank=2", f"output={adapter}"]
    base = files.load(studio / "dog.safetensors").header.base
    assert run(capsys, "train", *told, f"base={base}", "device=cpu")[0] == 0
    code, out, err = decompose(
        capsys, adapter, studio, "--encoders", small_encoder(tmp_path / "dino"), "-o", tmp_path / "a.png"
    )
    assert code == 0 and "known words vary by" in out and "warning" not in err, err


def test_where_no_hub_is_the_packaged_encoder_judges(studio, tmp_path, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    code, out, err = decompose(capsys, studio / "dog.safetensors", studio, "-o", tmp_path / "a.png")
    assert code == 0 and "efficientnet-lite0 judges instead" in err and "by efficientnet-lite0." in out


MISTAKES = {
    "two contents": (["DOG", "DOG"], "is a content adapter, in the style's place: give the content's file first"),
    "the style first": (["CAT", "DOG"], "is a style adapter, in the content's place: give the content's file first"),
    "a merge": (["MERGED", "CAT"], "is a merged adapter, in the content's place: give the two files that went into it"),
    "no such file": (["none.safetensors", "CAT"], "none.safetensors: No such file or directory"),
    "no such picture": (["DOG", "CAT", "--content-image", "none.png"], "none.png: No such file or directory"),
    "a picture for an adapter": (["PNG", "CAT"], "is a picture, not an adapter"),
    "one style": (["DOG", "CAT", "--styles", "neon"], "one style says too little, 'neon': give two or more"),
    "an unknown thing": (
        ["DOG", "CAT", "--base", "tiny-flux", "--things", "gutar,child"],
        "tiny-flux does not know the thing 'gutar', but 400 others, as 'guitar'",
    ),
    "another base": (["DOG", "CAT", "--base", "tiny-flux"], "belongs to another base"),
    "one file twice": (["FOREIGN", "./foreign.safetensors"], "is given as content and as style: give two files"),
    "a blank word": (["FOREIGN", "CAT", "--content-word", " "], "names no trigger word"),
    "a prompt that has the known things": (["CROWD", "CAT"], "name every thing but 'chair' that is drawn"),
    "no such network": (["DOG", "CAT", "--encoders", "dino-vits61"], "'dino-vits61'"),
    "a picture that has not the crop": (["CROPPED", "CAT"], "cropped.safetensors was trained on crop=90,0,80"),
    "no numbers of a crop": (["ODD", "CAT"], "odd.safetensors: crop reads x,y,side"),
    "no trigger": (
        ["FOREIGN", "CAT"],
        "names no trigger word: give the one that calls it in prompts with --content-word",
    ),
}


@pytest.mark.parametrize("words, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_draws_nothing(words, message, studio, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {name: studio / f"{name.lower()}.safetensors" for name in ("DOG", "CAT")}
    dog, cat = (files.load(path) for path in places.values())
    files.save(merge([dog, cat], [1.0, 1.0]), tmp_path / "merged.safetensors")
    files.save(replace(dog, header=replace(dog.header, role="", trigger="")), tmp_path / "foreign.safetensors")
    crowd = "<c> on a bicycle with a cat, a teapot and a tree, at a lighthouse"
    files.save(replace(dog, header=replace(dog.header, prompt=crowd)), tmp_path / "crowd.safetensors")
    shutil.copy(studio / "dog.png", tmp_path)  # 20 x 20 pixels
    for name, crop in {"cropped": "90,0,80", "odd": 5}.items():
        config = dog.header.config | {"crop": crop}
        files.save(replace(dog, header=replace(dog.header, config=config)), tmp_path / f"{name}.safetensors")
    places |= {x.upper(): f"{x}.safetensors" for x in ("merged", "foreign", "crowd", "cropped", "odd")}
    places["PNG"] = studio / "dog.png"
    monkeypatch.setattr(two_adapters, "generate", lambda *_, **__: pytest.fail("an image was drawn"))
    code, out, err = run(capsys, "decompose", *(places.get(word, word) for word in words), "-o", "sheet.png")
    line = err.strip().splitlines()[-1]
    assert code == 2 and out == "" and line.startswith("error: ") and message in line, err
    assert err.count("error: ") == 1 and not (tmp_path / "sheet.png").exists()
