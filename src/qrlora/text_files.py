"""Text files that people write, in UTF-8 with or without a byte order mark."""

from pathlib import Path


def read_text(path: str | Path) -> str:
    """The content of a text file in UTF-8, without the byte order mark (U+FEFF) that some editors put in front.

    Raises: OSError: missing, unreadable.  ValueError, naming the file: another encoding.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}): save it so") from error
