"""Warns of words in prompts that a built-in base was never shown."""

from collections.abc import Iterable, Sequence

from ..built_in_bases import built_in_bases
from . import console


def warn_of_unknown_words(base: str, prompts: Iterable[str], triggers: Sequence[str] = ()) -> None:
    """One line for all words of prompts that a built-in base does not know; none for other bases. Args: triggers: words
    that adapters give a meaning."""
    if base not in built_in_bases():
        return
    from ..world.captions import describe_unknown_words, unknown_words

    if words := unknown_words(" . ".join(prompts), triggers):
        console.warn(describe_unknown_words(base, words))
