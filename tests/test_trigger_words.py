"""A trigger word is found in a prompt as people write it."""

import unicodedata

import pytest

from qrlora.adapter import Adapter, Header, Pair
from qrlora.config import TrainConfig
from qrlora.missing_triggers import missing_trigger

WORDS = {  # what the prompt is, the trigger, whether it is said
    "a word": ("a sks dog", "sks", True),
    "inside another": ("a sksy dog", "sks", False),
    "the end of another": ("a desks", "sks", False),
    "in brackets": ("a <c>, drawn", "<c>", True),
    "glued to a letter": ("a <c>s", "<c>", True),
    "in capitals": ("A SKS DOG", "sks", True),
    "after a false start": ("desks and sks", "sks", True),
    "several words": ("my  old\ndog sleeps", "my old dog", True),
    "Chinese": ("一只小狗在画里", "小狗", True),
    "Latin in Chinese": ("一只sks狗", "sks", True),
    "Latin inside Latin in Chinese": ("一只desks狗", "sks", False),
    "absent in Chinese": ("一只小猫在画里", "小狗", False),
    "Japanese": ("ポチの写真", "ポチ", True),
    "Thai": ("ภาพแมวสีดำ", "แมว", True),
    "Korean with its particle": ("강아지는 잔다", "강아지", True),
    "Korean decomposed": (unicodedata.normalize("NFD", "강아지는"), "강아지", True),
    "Russian inside another": ("котик", "кот", False),
    "Arabic": ("صورة كلب صغير", "كلب", True),
    "Hindi": ("एक कुत्ता", "कुत्ता", True),
    "Hindi, another vowel sign": ("एक कुत्ते", "कुत्त", False),
    "composed, decomposed": ("ein Ma\u0308dchen", "mädchen", True),
    "decomposed, composed": ("ein Mädchen", "ma\u0308dchen", True),
    "an accent is a letter": ("a cafe\u0301", "cafe", False),
    "an accent that nothing composes": ("a x\u0302", "x", False),
    "sharp s": ("STRASSE im Regen", "straße", True),
    "Greek's last sigma": ("ΣΚΥΛΟΣ", "σκυλος", True),
}


@pytest.mark.parametrize("prompt, trigger, said", WORDS.values(), ids=WORDS.keys())
def test_a_trigger_is_found_in_any_language_as_a_whole_word(prompt, trigger, said):
    import torch

    header = Header(trigger=trigger)
    adapter = Adapter({"a": Pair(torch.ones(1, 2), torch.ones(2, 1))}, header)
    assert missing_trigger(prompt, adapter) == ("" if said else trigger)
    config = TrainConfig(image="x.png", trigger=trigger, prompt=prompt)
    if said:
        config.checked()
    else:
        with pytest.raises(ValueError, match="lacks its trigger word"):
            config.checked()
