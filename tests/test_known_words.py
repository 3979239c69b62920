"""The word for a style that the base's own loss chooses."""

import shlex

import pytest
import torch

from commands import run
from qrlora.built_in_bases import folder_of
from qrlora.cli.words import _given_words
from qrlora.families import open_base
from qrlora.files import load
from qrlora.image_loading import load_image
from qrlora.known_words import (
    COMMON_CONTENTS,
    COMMON_STYLES,
    FINALISTS,
    NEAR,
    _rounds,
    _spread_in_noise,
    nearest_word,
    search_words,
    word_losses,
)
from qrlora.training import train
from qrlora.world.captions import known_words
from qrlora.world.ground_truth import true_image
from qrlora.world.styles import STYLES


@pytest.fixture(scope="module")
def base():
    return open_base("tiny-flux", "cpu", "float32")


@pytest.mark.parametrize("style", ["blueprint", "gold", "mosaic"])
def test_a_picture_in_a_style_that_the_base_knows_is_best_explained_by_its_word(base, tmp_path, style):
    true_image("backpack", style).save(tmp_path / "picture.png")
    losses = word_losses(base, load_image(tmp_path / "picture.png", 128), "a backpack in {} style", [*STYLES], 4)
    assert next(iter(losses)) == style and list(losses.values()) == sorted(losses.values())


def test_the_loss_under_a_word_is_that_of_training_with_it(base, tmp_path):
    """Against the mean loss of updates that change nothing (rate 1e-30), over other noise than the search's."""
    true_image("backpack", "dusk").save(tmp_path / "picture.png")
    prompt = "a backpack in {} style"
    searched = word_losses(base, load_image(tmp_path / "picture.png", 128), prompt, ["pop"], 96)["pop"]
    losses: list[float] = []
    train(
        base=base,
        image=tmp_path / "picture.png",
        role="style",
        trigger="pop",
        prompt=prompt.format("pop"),
        output=tmp_path / "adapter.safetensors",
        learning_rate=1e-30,
        steps=12,
        rank=1,
        progress=False,
        on_step=lambda progress: losses.append(progress.loss),
    )
    assert sum(losses) / 12 == pytest.approx(searched, rel=0.15)


def test_equal_noise_for_every_word_and_a_prompt_without_a_place_for_it_is_refused(base, tmp_path):
    true_image("backpack", "dusk").save(tmp_path / "picture.png")
    image = load_image(tmp_path / "picture.png", 128)
    alone = word_losses(base, image, "a backpack in {} style", ["pop"], 2)
    assert word_losses(base, image, "a backpack in {} style", ["gold", "pop"], 2)["pop"] == pytest.approx(
        alone["pop"], rel=1e-5
    )
    braces = word_losses(base, image, "a backpack {tied} in {} style", ["pop"], 1)["pop"]
    assert braces > 0  # others than {} are the prompt's own
    for prompt, words in (("a backpack", ["pop"]), ("{} in {} style", ["pop"]), ("a backpack in {} style", [])):
        with pytest.raises(ValueError, match="one {} for them"):
            word_losses(base, image, prompt, words)


def test_the_choice_leaves_the_base_without_gradients_or_adapters(base, tmp_path):
    true_image("backpack", "dusk").save(tmp_path / "picture.png")
    word_losses(base, load_image(tmp_path / "picture.png", 128), "a backpack in {} style", ["pop"], 1)
    assert all(parameter.grad is None for parameter in base.model.parameters()) and torch.is_grad_enabled()


@pytest.mark.parametrize("style", ["dusk", "copper"])
def test_the_search_ends_with_the_best_word_and_the_losses_of_trying_each_on_all_copies(base, tmp_path, style):
    true_image("backpack", style).save(tmp_path / "picture.png")
    image, prompt, passes = load_image(tmp_path / "picture.png", 128), "a backpack in {} style", []
    words = known_words("style")
    found = search_words(base, image, prompt, "<s>", words, 4, 7, on_round=lambda *done: passes.append(done))
    every = word_losses(base, image, prompt, ["<s>", *words], 4, 7)
    best = min(words, key=every.__getitem__)
    assert min((x for x in found if x != "<s>"), key=found.__getitem__) == best
    assert nearest_word(found, "<s>") == nearest_word(every, "<s>")
    assert len(found) == 5 and list(found.values()) == sorted(found.values())
    for word, loss in found.items():
        assert loss == pytest.approx(every[word], rel=1e-4)
    done, total = zip(*passes, strict=True)
    assert sorted(done) == [*done] and done[-1] == total[0] < len(every) * 4 / 2


def test_the_search_keeps_a_placeholder_that_fits_worst_for_it_is_compared_with(base, tmp_path):
    true_image("backpack", "gold").save(tmp_path / "picture.png")
    image, prompt = load_image(tmp_path / "picture.png", 128), "a backpack in {} style"
    words = ["sepia", "gold", "emboss", "rose", "stripes"]
    found = search_words(base, image, prompt, "blueprint", words, 2, finalists=1)
    assert list(found) == ["gold", "blueprint"]
    every = word_losses(base, image, prompt, ["blueprint", *words], 2)
    assert list(every)[-1] == "blueprint" and found["blueprint"] == pytest.approx(every["blueprint"], rel=1e-4)
    for wrong in ({"finalists": 0}, {"words": []}, {"copies": 0}, {"prompt": "a backpack"}, {"words": "gold"}):
        with pytest.raises(ValueError):
            search_words(base, image, **{"prompt": prompt, "placeholder": "<s>", "words": ["gold"], **wrong})


@pytest.mark.parametrize("words, copies", [(400, 4), (23, 16), (58, 16), (86, 4)])
def test_the_search_predicts_a_third_as_often_and_meets_each_copy_once(words, copies):
    rounds = _rounds(words, copies, FINALISTS)
    assert rounds[0][0] == words and all(count >= FINALISTS for count, *_ in rounds)
    assert [start for _, start, _ in rounds] == [0, *(end for *_, end in rounds[:-1])] and rounds[-1][2] == copies
    assert sum((1 + count) * (end - start) for count, start, end in rounds) * 2.8 < (1 + words) * copies


@pytest.mark.parametrize("copies", [1, 4, 6, 16])
def test_the_first_copies_of_a_search_are_the_noisiest_and_those_between(copies):
    time = torch.rand(copies, generator=torch.Generator().manual_seed(copies))
    order = _spread_in_noise(time)
    assert sorted(order) == [*range(copies)] and order[0] == int(time.argmax())
    assert copies < 2 or int((time > time[order[1]]).sum()) == 2 ** ((copies - 1).bit_length() - 1)


def test_a_word_that_is_not_near_leaves_the_placeholder():
    assert nearest_word({"<s>": 1.0, "gold": NEAR - 0.01, "pop": 3.0}, "<s>") == "gold"
    assert nearest_word({"<s>": 1.0, "gold": NEAR, "pop": 3.0}, "<s>") == "<s>"
    assert nearest_word({"<s>": 2.0, "gold": 1.0}, "<s>") == "gold"


def test_the_verb_names_the_word_that_a_known_style_has_and_the_command_to_train_under_it(tmp_path, capsys):
    true_image("backpack", "blueprint").save(tmp_path / "picture.png")
    (tmp_path / "words.txt").write_text("\ufeffpop\nblueprint\n\ngold\n", encoding="utf-8")
    words = ("words", str(tmp_path / "picture.png"), "a backpack in <s> style", "--device", "cpu")
    code, out, _ = run(capsys, *words, "--words", str(tmp_path / "words.txt"))
    assert code == 0 and out.index("blueprint") < out.index("gold") and out.index("blueprint") < out.index("pop")
    assert "trigger=blueprint" in out and "'prompt=a backpack in blueprint style'" in out and "role=style" in out
    code, out, _ = run(capsys, *words, "--words", "pop, gold", "--shown", "1")
    assert code == 0 and "keep <s>" in out and "trigger=" not in out and ("pop" in out) != ("gold" in out)


def test_a_list_of_words_may_be_longer_than_the_name_of_a_file():
    many = [f"word {k}" for k in range(100)]
    assert _given_words(",".join([*many, "<s>"]), "<s>") == many


def test_what_the_verb_says_to_train_with_is_what_train_takes(tmp_path, capsys):
    true_image("backpack", "gold").save(tmp_path / "picture.png")
    (tmp_path / "base").symlink_to(folder_of("tiny-flux"))  # another base than the one that `train` takes unasked
    told = ("words", str(tmp_path / "picture.png"), "a backpack in <s> style", "--words", "gold", "--device", "cpu")
    _, out, _ = run(capsys, *told, "--base", str(tmp_path / "base"))
    assert f"base={tmp_path / 'base'}" in out
    line = shlex.split(out[out.index("qrlora train") :])
    output = tmp_path / "adapter.safetensors"
    code, _, _ = run(capsys, *line[1:], "steps=1", "rank=1", "device=cpu", f"output={output}")
    assert code == 0 and load(output).header.trigger == "gold"


@pytest.mark.parametrize(
    "words, message",
    [
        (["a backpack"], "needs <c> or <s> once"),
        (["a <c> in <s> style"], "needs <c> or <s> once"),
        (["<s> in <s> style"], "needs <c> or <s> once"),
        (["a <c>", "--words", " , "], "holds no words"),
        (["a <c>", "--words", "<c>"], "holds no words"),
        (["a <c>", "--words", "none.txt"], "none.txt"),
        (["a <c>", "--shown", "0"], "shown must be 1 or more"),
        (["a <c>"], "no-such-base"),
    ],
)
def test_a_mistake_of_the_verb_is_one_line_with_exit_code_2(tmp_path, capsys, words, message):
    true_image("backpack", "gold").save(tmp_path / "picture.png")
    code, out, err = run(capsys, "words", str(tmp_path / "picture.png"), *words, "--base", "no-such-base")
    assert code == 2 and out == "" and message in err.strip().splitlines()[-1] and err.count("error: ") == 1


def test_a_picture_that_is_none_is_refused_before_a_base_is_opened(tmp_path, capsys):
    code, _, err = run(capsys, "words", str(tmp_path / "none.png"), "a <c>", "--base", "no-such-base")
    assert code == 2 and "none.png" in err


def test_words_that_come_twice_or_one_at_a_time_are_each_tried_once(base, tmp_path):
    true_image("backpack", "gold").save(tmp_path / "picture.png")
    given = base, load_image(tmp_path / "picture.png", 128), "a backpack in {} style"
    wanted = word_losses(*given, ["gold", "pop"], 1)
    assert word_losses(*given, (x for x in ("gold", "gold", "pop")), 1) == wanted
    twice = search_words(*given, "<s>", ["gold", "gold", "<s>", "pop", "pop"], 1, finalists=2)
    assert {word: twice[word] for word in wanted} == pytest.approx(wanted, rel=1e-5) and len(twice) == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"placeholder": ""}, "words must be text, and not empty, got ''"),
        ({"words": ["gold", None]}, "words must be text, and not empty, got None"),
        ({"words": None}, "words is a list of words, got None"),
        ({"words": []}, "got 0 words"),
        ({"words": ["<s>"]}, "got 0 words"),
        ({"prompt": None}, "prompt must be of class str"),
        ({"prompt": "a cat"}, "needs words, a prompt with one {} for them"),
        ({"image": "a.png"}, "image must be of class CroppedImage"),
        ({"base": "tiny-flux"}, "base must be of class Base"),
        ({"copies": 1.5}, "copies must be a whole number, got 1.5"),
        ({"finalists": "4"}, "finalists must be a whole number, got '4'"),
        ({"seed": -1}, "seed must be in 0.."),
    ],
)
def test_a_wrong_argument_of_a_search_is_named(base, tmp_path, changes, message):
    true_image("backpack", "gold").save(tmp_path / "picture.png")
    given = {"base": base, "image": load_image(tmp_path / "picture.png", 128), "prompt": "a cat in {} style"}
    with pytest.raises(ValueError) as caught:
        search_words(**{**given, "placeholder": "<s>", "words": ["gold"], "copies": 1, **changes})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_losses_without_the_placeholders_or_of_it_alone_have_no_nearest_word():
    for losses in ({"gold": 1.0}, {"<s>": 1.0}, {}):
        with pytest.raises(ValueError, match="needs losses of <s> and of a word"):
            nearest_word(losses, "<s>")


def test_common_words_are_given_once_and_hold_no_comma():
    for words in (COMMON_STYLES, COMMON_CONTENTS):
        assert len(words) == len(set(words)) > 50 and all(x == x.strip() and x and "," not in x for x in words)
