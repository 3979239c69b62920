"""Text files in UTF-8: read with or without a byte order mark, as people write them; written whole or not at all."""

import csv
import io
from collections.abc import Iterator
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


def csv_rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(line in the file, cells) of every row of a CSV file, the head's first.

    Raises: as `read_text`.  ValueError, with the line: no CSV, or a cell above csv.field_size_limit.
    """
    yield from _parse_csv_rows(path, read_text(path))


def _parse_csv_rows(path: str | Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """`csv_rows` of a file's text."""
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: cannot be read as CSV ({error}); save it so anew") from error


def csv_records(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file that this program wrote, by the names in its head. Raises as `csv_rows`; ValueError: a row
    with more or fewer cells than the head."""
    return parse_csv_records(path, read_text(path))


def parse_csv_records(path: str | Path, text: str) -> list[dict[str, str]]:
    """`csv_records` of a file's text."""
    lines = _parse_csv_rows(path, text)
    head = next(lines, (0, []))[1]
    rows = [row for row in lines if row[1]]
    for line, cells in rows:
        if len(cells) != len(head):
            raise ValueError(f"{path}, line {line}: has {len(cells)} of the {len(head)} columns; write it anew")
    return [dict(zip(head, cells, strict=True)) for _, cells in rows]


def write_text(path: str | Path, text: str) -> None:
    """Write, or replace, a text file in UTF-8. Raises OSError, see `output_files.atomic`."""
    with atomic(path) as file:
        file.write(text.encode())
