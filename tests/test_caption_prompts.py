"""What a built-in base, which knows the captions of the synthetic benchmark alone, makes of a person's prompt."""

import pytest
import torch
from PIL import Image

import pico
from commands import run
from qrlora.adapter import Adapter, Header, Pair
from qrlora.built_in_bases import built_in_bases
from qrlora.families import SizeConditioning, open_base
from qrlora.families.captions import as_caption
from qrlora.families.trigger_tokens import describe_unreadable_trigger, tokenizers_of
from qrlora.files import save
from qrlora.world import demo
from qrlora.world.captions import caption, describe_unknown_words, known_caption_words, unknown_words
from qrlora.world.drawings import SIZE, held_out_contents, known_contents
from qrlora.world.ground_truth import true_image
from qrlora.world.styles import STYLES

PEOPLES, CAPTIONS = ["A Castle in Neon style", "an Owl"], ["a castle in neon style", "a owl"]


def test_a_prompt_is_read_as_a_caption_is_written():
    assert [as_caption(prompt) for prompt in PEOPLES] == CAPTIONS
    for kept in ("a <an> in panda style", "ant, pan", caption("owl", "neon"), ""):
        assert as_caption(kept) == kept


@pytest.mark.parametrize("name", built_in_bases())
def test_capitals_and_an_article_change_nothing_of_what_a_built_in_base_is_told(name):
    base, sizes = open_base(name, "cpu", "float32"), SizeConditioning.uncropped(SIZE, SIZE)
    several = [sizes, SizeConditioning.uncropped(SIZE, 2 * SIZE)]
    for told in (
        lambda prompts: base.encode_prompt(prompts, sizes),
        lambda prompts: base.encode_prompts(prompts, several),
        lambda prompts: base.embed(prompts, prompts[0], 2.0),
    ):
        for theirs, ours in zip(told(PEOPLES).tensors.values(), told(CAPTIONS).tensors.values(), strict=True):
            assert torch.equal(theirs, ours)


@pytest.mark.parametrize("name", built_in_bases())
def test_no_tokenizer_of_a_built_in_base_meets_an_unknown_letter_in_a_prompt_with_capitals(name):
    base = open_base(name, "cpu", "float32")
    for tokenizer in tokenizers_of(base.pipe).values():
        unknown = set() if tokenizer.unk_token_id == tokenizer.eos_token_id else {tokenizer.unk_token_id}
        assert all(not unknown & set(tokenizer(prompt).input_ids) for prompt in base.as_read(PEOPLES))
    assert describe_unreadable_trigger(base, "TOK") == ""


def test_another_base_is_given_prompts_as_they_are():
    assert open_base(pico.folder("flux"), "cpu").as_read(PEOPLES) == PEOPLES


def test_every_usual_caption_of_known_contents_and_styles_is_of_known_words():
    words = {word for name in known_contents() for style in STYLES for word in unknown_words(caption(name, style))}
    assert not words and unknown_words("An old photo of a castle, PIXEL ART, a <c> in <s> style") == []


def test_words_that_no_training_caption_held_are_unknown_held_out_contents_too():
    assert unknown_words("A castel and a robot in baroque style") == ["castel", "robot", "baroque"]
    assert "robot" in held_out_contents() and "robot" not in known_caption_words()
    assert unknown_words("a MyDog or a cat in ink-wash style", ["mydog", "ink-wash", "a"]) == ["or"]


def test_a_warning_names_known_words_that_are_spelt_much_like_an_unknown_one():
    told = describe_unknown_words("tiny-flux", ["castel", "xyzzy"])
    assert "tiny-flux" in told and "'castel' (near: castle" in told and "or 'xyzzy':" in told


def warnings(err):
    return [line for line in " ".join(err.split()).split("warning: ") if "no caption that" in line]


@pytest.fixture
def mydog(tmp_path):
    """The file of an adapter on tiny-flux that is called by a word of its own and changes nothing."""
    base, layer = open_base("tiny-flux", "cpu", "float32"), "transformer_blocks.0.attn.add_q_proj"
    o, i = base.weight(layer).shape
    header = Header(family="flux", component="transformer", base="tiny-flux", role="content", trigger="mydog")
    save(Adapter({layer: Pair(torch.zeros(2, i), torch.zeros(o, 2))}, header), tmp_path / "mydog.safetensors")
    return tmp_path / "mydog.safetensors"


def test_generate_and_grid_warn_in_one_line_of_words_that_a_built_in_base_does_not_know(mydog, tmp_path, capsys):
    common = ("--steps", 1, "--device", "cpu", "--overwrite", "-o", tmp_path / "a.png")
    code, _, err = run(capsys, "generate", "A mydog beside a castel", mydog, *common)
    assert code == 0 and len(warnings(err)) == 1, err
    assert "'beside'" in err and "'castel' (near: castle" in err and "'mydog'" not in err
    code, _, err = run(capsys, "generate", "An Owl in Neon style", *common)
    assert code == 0 and not warnings(err), err
    strengths = ("--content-strengths", 1, "--style-strengths", 1, "--prompt", "a mydog in baroque style")
    code, _, err = run(capsys, "grid", mydog, mydog, *strengths, *common)
    assert code == 0 and len(warnings(err)) == 1 and "'baroque'" in err, err


def test_training_warns_of_words_in_captions_that_a_built_in_base_does_not_know(tmp_path, capsys):
    for name, text in (("a", "a watercolour of <c>"), ("b", "a <c> in neon style")):
        Image.effect_noise((SIZE, SIZE), 60).convert("RGB").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    common = ("steps=1", "rank=1", "device=cpu", f"output={tmp_path / 'out.safetensors'}")
    code, _, err = run(capsys, "train", f"image={tmp_path}", *common)
    assert code == 0 and len(warnings(err)) == 1 and "'watercolour' (near: watercolor)" in err, err
    other = ("train", f"image={tmp_path}", f"base={pico.folder('flux')}", "steps=1", "device=cpu")
    code, _, err = run(capsys, *other, f"output={tmp_path / 'other.safetensors'}")
    assert code == 0 and not warnings(err), err


@pytest.mark.parametrize(
    ("base", "told", "prompt"),
    [
        ("tiny-flux", "", "a panda in <s> style"),
        ("tiny-flux", "cat", "a cat in <s> style"),
        ("", "", "a thing in <s> style"),
    ],
)
def test_the_demo_names_what_a_style_image_shows_by_the_nearest_content_that_a_built_in_base_knows(
    base, told, prompt, tmp_path, monkeypatch
):
    """Where nobody says it: an unnamed content would be learnt as style."""
    trained = []
    true_image("panda", "dusk").save(tmp_path / "style.png")
    monkeypatch.setattr(demo, "search_words_of_file", lambda *_, **__: {"<c>": 1.0, "robot": 9.0, "panda": 3.0})
    monkeypatch.setattr(demo, "train", lambda config, **_: trained.append(config.prompt))
    monkeypatch.setattr(demo, "merge", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        settings = {"base": base or str(pico.folder("flux")), "style_shows": told, "known_words": False}
        demo.demo(tmp_path / "out", style=tmp_path / "style.png", **settings, device="cpu")
    assert trained == ["a <c> in plain style", prompt]


def test_the_demo_warns_of_a_word_for_the_style_image_that_a_built_in_base_does_not_know(tmp_path, capsys, monkeypatch):
    true_image("panda", "dusk").save(tmp_path / "style.png")
    monkeypatch.setattr(demo, "demo", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(capsys, "demo", "--style", tmp_path / "style.png", "--style-shows", "pandah", "-o", tmp_path / "out")
    assert "'pandah' (near: panda" in " ".join(capsys.readouterr().err.split())
