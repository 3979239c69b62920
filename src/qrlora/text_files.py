"""Text files in UTF-8: read with or without a byte order mark, as people write them; written whole or not at all."""

from pathlib import Path

from .output_files import atomic


def read_text(path: str | Path) -> str:
    """The content of a text file in UTF-8, without the byte order mark (U+FEFF) that some editors put in front.

    Raises: OSError: missing, unreadable.  ValueError, naming the file: another encoding.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}): save it so") from error


def write_text(path: str | Path, text: str) -> None:
    """Write, or replace, a text file in UTF-8. Raises OSError, see `output_files.atomic`."""
    with atomic(path) as file:
        file.write(text.encode())
