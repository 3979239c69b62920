"""Prompts in the form of the synthetic benchmark's captions, the only words that the built-in bases were shown."""

import re


def as_caption(prompt: str) -> str:
    """A prompt as the captions are written: in lower case, with "a owl" for "an owl"."""
    return re.sub(r"(?<!\S)an(?!\S)", "a", prompt.lower())
