"""How the tokenizers of a base read a trigger word: whether one replaces part of it by a token that means nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base_model import Base

CANDIDATES = ("sks", "zwx", "ohwx", "kbtr", "this")
"""Rare short words, in the order in which one is proposed."""
NAMED_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id")


def describe_unreadable_trigger(base: Base, trigger: str) -> str:
    """One sentence for the first tokenizer that reads a trigger word with its token for unknown text, as one without
    "<" reads `<c>`, or with one of its marks, as one that begins every text with `<s>` reads that word; with a word
    that all of the base's tokenizers read in meaningful tokens. "" if they read this one so."""
    tokenizers = tokenizers_of(base.pipe)
    (word,) = base.as_read([trigger])
    for name, tokenizer in tokenizers.items():
        lost = _meaningless_tokens(tokenizer, word)
        if lost:
            readable = [x for x in CANDIDATES if not any(_meaningless_tokens(t, x) for t in tokenizers.values())]
            hint = f"; trigger={readable[0]}, with the same word in the prompt, is read whole" if readable else ""
            reads = f"the {name} of {base.name} reads {', '.join(lost)} in the trigger {trigger!r}"
            return f"{reads}, so that it is told apart by the rest alone{hint}"
    return ""


def tokenizers_of(pipe: Any) -> Mapping[str, Any]:
    """{name: tokenizer} of a pipeline, some within a processor."""
    names = [name for name in pipe.config if name.startswith(("tokenizer", "processor"))]
    found = {name: component for name in names if (component := getattr(pipe, name, None)) is not None}
    return {name: getattr(component, "tokenizer", component) for name, component in found.items()}


def _meaningless_tokens(tokenizer: Any, word: str) -> list[str]:
    """The tokens of a trigger word that stand for unknown text, or for a mark of the tokenizer's own such as its
    beginning."""
    unknown = tokenizer.unk_token_id
    marks = {unknown, *(getattr(tokenizer, name, None) for name in NAMED_TOKENS)} - {None}
    found = [number for number in tokenizer(word, add_special_tokens=False).input_ids if number in marks]
    return list(dict.fromkeys(tokenizer.convert_ids_to_tokens(number) for number in found))
