"""Trigger words that a prompt lacks: an adapter that acts is to be called by its own word."""

from collections.abc import Sequence

from .adapter import Adapter
from .trigger_words import contains_word


def triggers_of(adapter: Adapter) -> list[str]:
    """The trigger words of an adapter, or of those merged in it."""
    return [trigger for trigger in adapter.header.trigger.split(", ") if trigger]


def missing_trigger(prompt: str, adapter: Adapter) -> str:
    """The first of `triggers_of` an adapter that a prompt lacks as a whole word, or ""."""
    for trigger in triggers_of(adapter):
        if not contains_word(prompt, trigger):
            return trigger
    return ""


def missing_triggers(prompts: Sequence[str], adapters: Sequence[tuple[Adapter, float]]) -> list[str]:
    """A sentence for each adapter that acts and that a prompt does not call."""
    found = []
    for prompt in dict.fromkeys(prompts):
        for adapter, strength in adapters:
            trigger = missing_trigger(prompt, adapter) if strength else ""
            if trigger:
                role = f"the {adapter.header.role} adapter" if adapter.header.role else "an adapter"
                found.append(f"the prompt {prompt!r} lacks {trigger!r}, the trigger word of {role}")
    return found


def refuse_missing_triggers(prompts: Sequence[str], adapters: Sequence[tuple[Adapter, float]]) -> None:
    """Raises ValueError: an adapter acts, and a prompt does not call it."""
    if missing := missing_triggers(prompts, adapters):
        raise ValueError(f"{missing[0]}: add it, or generate all the same with --any-prompt (check_triggers=False)")
