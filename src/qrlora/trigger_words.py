"""What people write: files of text with or without a mark in front, and whether a prompt says a word."""

import unicodedata
from pathlib import Path

UNSPACED = (
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


def read_text(path: str | Path) -> str:
    """A text file that somebody wrote, in UTF-8; the mark (U+FEFF) that some editors put in front is no part of it.

    Raises: OSError: missing, unreadable.  ValueError, naming the file: another encoding.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}): save it so") from error


def says(prompt: str, word: str) -> bool:
    """Whether a prompt holds a word, or several, as a whole and not inside of longer ones.

    Upper and lower case are one, so are letters that are composed ("é") or not ("e" and an accent), as the tokenizers
    of CLIP read them (NFC), and any white space. Scripts without spaces have no edges of words to see: there the word
    may stand anywhere.
    """
    text, wanted = _plain(prompt), _plain(word)
    start = text.find(wanted)
    while wanted and start >= 0:
        end = start + len(wanted)
        if not _joined(text[:start], wanted) and not _joined(wanted, text[end:]):
            return True
        start = text.find(wanted, start + 1)
    return False


def _plain(text: str) -> str:
    """Equal for texts that differ in case, composition or white space alone."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return unicodedata.normalize("NFC", " ".join(folded.split()))


def _joined(before: str, after: str) -> bool:
    """Whether the last letter of one text and the first of another would be of one word."""
    if not before or not after:
        return False
    if unicodedata.category(after[0]).startswith("M"):  # an accent or vowel sign belongs to the letter before it
        return True
    return _spaced(before[-1]) and _spaced(after[0])


def _spaced(letter: str) -> bool:
    """Whether a character is part of a word in a script that puts spaces between words."""
    is_letter = letter.isalnum() or letter == "_" or unicodedata.category(letter).startswith("M")
    return is_letter and not unicodedata.name(letter, "").startswith(UNSPACED)
