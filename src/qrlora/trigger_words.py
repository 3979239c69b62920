"""Whether a prompt contains a trigger word, in any script."""

import unicodedata

SCRIPTS_WITHOUT_SPACES = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "HALFWIDTH KATAKANA",
    "IDEOGRAPHIC",
    "BOPOMOFO",
    "HANGUL",  # has spaces, but particles are written onto the noun
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
    "JAVANESE",
    "BALINESE",
    "TAI ",
    "NEW TAI",
    "YI ",
)
"""How Unicode's names begin for letters of scripts in which the next word follows without a space."""


def contains_word(prompt: str, word: str) -> bool:
    """Whether a prompt contains a trigger word (or phrase) as a whole word, not inside of a longer one.

    Case, white space and Unicode composition ("é", or "e" and an accent) make no difference, as for CLIP's tokenizers
    (NFC). In scripts without spaces between words the trigger may stand anywhere.
    """
    text, wanted = _normalised(prompt), _normalised(word)
    start = text.find(wanted)
    while wanted and start >= 0:
        end = start + len(wanted)
        if not _in_one_word(text[:start], wanted) and not _in_one_word(wanted, text[end:]):
            return True
        start = text.find(wanted, start + 1)
    return False


def _normalised(text: str) -> str:
    """Equal for texts that differ in case, composition or white space alone."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return unicodedata.normalize("NFC", " ".join(folded.split()))


def _in_one_word(before: str, after: str) -> bool:
    """Whether the last letter of one text and the first of another would be of one word."""
    if not before or not after:
        return False
    if unicodedata.category(after[0]).startswith("M"):  # an accent or vowel sign belongs to the letter before it
        return True
    return _is_word_character(before[-1]) and _is_word_character(after[0])


def _is_word_character(letter: str) -> bool:
    """Whether a character is part of a word in a script that puts spaces between words."""
    is_letter = letter.isalnum() or letter == "_" or unicodedata.category(letter).startswith("M")
    return is_letter and not unicodedata.name(letter, "").startswith(SCRIPTS_WITHOUT_SPACES)
