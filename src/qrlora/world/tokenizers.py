"""The CLIP and the T5 tokenizer of the built-in bases, made for the benchmark's captions."""

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
"""Tokens to which a prompt is padded or cut; the longest caption has fewer."""
VOCABULARY_SIZE = 2048


UNUSED_WORDS = ("google", "noto")
"""Words of the tokenizers that no caption has: without them the tokens of all later words would change."""

TOKENIZER_FOLDER = Path(__file__).parent / "tokenizer"
"""Written by ``python -m qrlora.world.tokenizers``; with another one every base must be pre-trained anew."""


def clip_tokenizer() -> CLIPTokenizer:
    """The CLIP tokenizer of all built-in bases.  It is stored: training it again may order equal merges differently."""
    return CLIPTokenizer.from_pretrained(TOKENIZER_FOLDER)


def caption_vocabulary() -> list[str]:
    """Every word of the captions, but for the names of held-out styles and hands, which no base may know."""
    words = {word for name in contents() for word in name.split()} | set(STYLES) | caption_words() | set(UNUSED_WORDS)
    return sorted(word for word in words if word.isalnum())


def train_clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with merges trained on the captions, so that most words are one token."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = caption_vocabulary()
    corpus = [caption(CONTENT, STYLE)] * 8 + words * 4
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    trained = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    tokens += [c + "</w>" for c in alphabet if c + "</w>" not in trained["vocab"]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    merges: Any = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    return CLIPTokenizer(vocab={t: k for k, t in enumerate(tokens)}, merges=merges, model_max_length=TEXT_LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer with one piece for each word of the captions, and letters for all other words."""
    words = caption_vocabulary()
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789<>.,-'"))
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in (CONTENT, STYLE, *words)), *letters]
    # a unigram tokenizer takes the likeliest split: any whole word before its letters
    vocabulary = [(piece, -1.0 if len(piece) > 1 else -10.0) for piece in pieces]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TEXT_LENGTH)


if __name__ == "__main__":
    train_clip_tokenizer().save_pretrained(TOKENIZER_FOLDER)
