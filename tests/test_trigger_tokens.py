"""A trigger word that a tokenizer loses is said, with a word that it does not lose."""

import logging

import pytest
from transformers import AddedToken, T5TokenizerFast

import pico
from qrlora.config import TrainConfig
from qrlora.families import open_base
from qrlora.families.trigger_tokens import describe_unreadable_trigger
from qrlora.training import train


def t5_without(missing: str):
    """A T5 tokenizer whose vocabulary lacks these letters."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz<>") - set(missing))
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters]
    return T5TokenizerFast(vocab=[(x, -float(k)) for k, x in enumerate(pieces)], extra_ids=0, model_max_length=512)


def t5_that_begins_with(mark: str):
    """One for which a word of prompts is its mark of a text's beginning, as `<s>` is for many."""
    tokenizer = t5_without("")
    tokenizer.add_special_tokens({"bos_token": AddedToken(mark, special=True)})
    return tokenizer


@pytest.fixture
def base():
    return open_base(pico.folder("flux"), "cpu")


def test_the_default_triggers_are_read_whole_by_clip_and_t5_that_know_their_letters(base):
    for trigger in ("<c>", "<s>", "sks"):
        assert describe_unreadable_trigger(base, trigger) == ""


def test_a_letter_that_a_tokenizer_does_not_know_is_named_with_a_word_that_it_does(base):
    base.pipe.tokenizer_2 = t5_without("<k")
    for trigger in ("<c>", "<s>"):
        told = describe_unreadable_trigger(base, trigger)
        assert f"the tokenizer_2 of {base.name} reads <unk> in the trigger {trigger!r}" in told
        assert "trigger=zwx" in told  # "sks" has a letter that this one lacks, too
    assert describe_unreadable_trigger(base, "zwx") == ""


def test_a_trigger_that_is_a_tokenizers_own_mark_is_named(base):
    base.pipe.tokenizer_2 = t5_that_begins_with("<s>")
    assert "reads <s> in the trigger '<s>'" in describe_unreadable_trigger(base, "<s>")
    assert describe_unreadable_trigger(base, "<c>") == ""


def test_training_says_it_in_one_line_and_goes_on(base, studio, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="qrlora")
    output = tmp_path / "out.safetensors"
    config = TrainConfig(image=studio / "dog.png", output=output, device="cpu", steps=1)
    train(config, base=base)
    assert not caplog.messages
    base.pipe.tokenizer_2 = t5_without("<")
    train(TrainConfig(image=studio / "dog.png", output=tmp_path / "b.safetensors", device="cpu", steps=1), base=base)
    assert len(caplog.messages) == 1 and "trigger=sks, with the same word in the prompt" in caplog.messages[0]
