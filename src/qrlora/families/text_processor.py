"""A processor of words alone, in place of one that reads images beside them and asks for torchvision."""

import functools
from pathlib import Path
from typing import Any


def text_processor(folder: Path) -> Any:
    """transformers' processor of what a folder holds for words: its tokenizer and its chat template.

    Raises: OSError, ValueError: no tokenizer that transformers can read.
    """
    return text_processor_class().from_pretrained(str(folder))


@functools.cache
def text_processor_class() -> Any:
    """A class of transformers' processors; made when it is needed, since transformers takes seconds to import."""
    from transformers import ProcessorMixin

    class TextProcessor(ProcessorMixin):
        def __init__(self, tokenizer: Any = None, chat_template: str | None = None):
            super().__init__(tokenizer, chat_template=chat_template)

        def __call__(self, images: None = None, text: Any = None, **settings: Any) -> Any:
            """One text is a batch of one, as to processors of images."""
            return super().__call__(text=[text] if isinstance(text, str) else text, **settings)

    return TextProcessor
