"""A CSV file of scored images that grows from call to call: what is in it is not made again."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..text_files import parse_csv_records, read_text, write_text


class RowFile:
    """The rows of one comparison, each known by its first columns, the labels."""

    def __init__(self, path: Path, labels: Sequence[str], values: Sequence[str]) -> None:
        """Open the file, or make it; rows of an earlier version, with fewer columns, get the others empty.

        Raises: ValueError: as `read_rows`; a file of other columns.
        """
        self.path, self.labels, self.fields = path, tuple(labels), (*labels, *values)
        found = read_rows(path) if path.exists() else []
        if found and not {*labels} <= {*found[0]} <= {*self.fields}:
            columns = f"{', '.join(found[0])}; here {', '.join(self.fields)}"
            raise ValueError(f"{path} is of another version or program (columns {columns}): take another folder")
        if not found or tuple(found[0]) != self.fields or not _ends_whole(path):
            text = io.StringIO()
            writer = csv.DictWriter(text, self.fields, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)
            write_text(path, text.getvalue())  # whole or not at all: the rows took hours
        self._done = {tuple(row[name] for name in self.labels) for row in found}

    def has(self, labels: Sequence[object]) -> bool:
        """Whether a row of these labels is there."""
        return tuple(map(str, labels)) in self._done

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """Write rows, of all columns in order; floats with four decimals, None as an empty cell."""
        written = [["" if x is None else round(x, 4) if isinstance(x, float) else x for x in row] for row in rows]
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(written)
        self._done |= {tuple(map(str, row[: len(self.labels)])) for row in written}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file, without a last line that has no end: a call that was stopped has left part of a row.

    Raises: OSError.  ValueError, naming the file and the line: no text in UTF-8, no CSV, a row without all columns.
    """
    text = read_text(path)
    return parse_csv_records(path, text[: text.rfind("\n") + 1])


def _ends_whole(path: Path) -> bool:
    return read_text(path).endswith("\n")
