"""The words that the built-in bases read: a CLIP and a T5 tokenizer of the world's captions."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPTokenizer,
    T5Tokenizer,
)

from .captions import CONTENT, STYLE, caption, caption_words
from .drawings import contents
from .styles import STYLES

TEXT_LENGTH = 20
"""Tokens a prompt is padded or cut to; the world's longest caption has fewer."""
VOCABULARY = 2048


TOKENIZER = Path(__file__).parent / "tokenizer"
"""Written by ``python -m qrlora.world.vocabulary``; whoever writes it anew must pre-train every base anew."""


def world_tokenizer() -> CLIPTokenizer:
    """The tokenizer of all built-in bases.  It is kept, because learning it twice gives two orders of equal merges."""
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def world_words() -> list[str]:
    """Every word of the world's captions; those of held-out styles and hands are left out, as in any real tokenizer."""
    words = {word for name in contents() for word in name.split()} | set(STYLES) | caption_words()
    return sorted(word for word in words if word.isalnum())


def learn_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with merges learnt from the world's captions, so that most words are one token."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = world_words()
    corpus = [caption(CONTENT, STYLE)] * 8 + words * 4
    learner.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    learnt = json.loads(learner.to_str())["model"]
    tokens = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    tokens += [c + "</w>" for c in alphabet if c + "</w>" not in learnt["vocab"]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    merges: Any = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]]
    return CLIPTokenizer(vocab={t: k for k, t in enumerate(tokens)}, merges=merges, model_max_length=TEXT_LENGTH)


def word_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer with one piece for each of the world's words, and letters for all others."""
    words = world_words()
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789<>.,-'"))
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in (CONTENT, STYLE, *words)), *letters]
    # a unigram tokenizer takes the likeliest split: any whole word before its letters
    vocabulary = [(piece, -1.0 if len(piece) > 1 else -10.0) for piece in pieces]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TEXT_LENGTH)


if __name__ == "__main__":
    learn_tokenizer().save_pretrained(TOKENIZER)
