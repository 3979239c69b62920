"""The memory table of docs/hardware.md is the one that bench/memory.py prints today."""

from pathlib import Path

from memory import HEAD, SIZES, names, row

TEXT = (Path(__file__).parents[1] / "docs" / "hardware.md").read_text("utf-8")


def test_every_public_base_with_shapes_of_its_own_has_a_row_for_each_size():
    table = TEXT.partition(HEAD)[2].lstrip("\n").partition("\n\n")[0].splitlines()
    assert [line.split(" | ")[:2] for line in table] == [[f"| `{x}`", str(size)] for x in names() for size in SIZES]


def test_a_row_is_what_is_counted_today():
    """Of the smallest; all together take minutes."""
    assert row("sd15", SIZES[0]) in TEXT.splitlines()
