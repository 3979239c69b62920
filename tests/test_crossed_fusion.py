"""Contents and style images crossed: one adapter for a row or column of sums, and tables that know it."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

import pico
from qrlora import evaluation
from qrlora.comparison import crossed_fusion
from qrlora.comparison.crossed_fusion import CrossedFusion, CrossedSettings
from qrlora.comparison.crossed_tables import CROSSED_PARTS, FIELDS, SCORES, markdown_tables, read_rows, scored_methods
from qrlora.comparison.decomposition import SUM
from qrlora.files import load
from qrlora.known_words import nearest_word
from qrlora.sampling import generate
from qrlora.world.captions import caption
from qrlora.world.ground_truth import true_images
from qrlora.world.image_tensors import tensor_from_pil

SPEC = "qr:steps=1"


def crossing(folder: Path, **told) -> CrossedFusion:
    return CrossedFusion(
        CrossedSettings(root=folder, base=str(pico.folder()), **{"contents": 2, "styles": 1, "known": 1, **told})
    )


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    found = crossing(tmp_path_factory.mktemp("crossed"))
    found.run(SPEC)
    return found


def test_three_adapters_give_two_sums_and_each_alone(crossed):
    rows, adapters = read_rows(crossed.rows), sorted((crossed.folder / "adapters").glob("*.safetensors"))
    assert len(adapters) == 3
    assert [sum(row["part"] == part for row in rows) for part in CROSSED_PARTS] == [1, 2, 1, 2]
    sums = [row for row in rows if row["part"] == SUM]
    assert {(row["content"], row["style"]) for row in sums} == {
        (c, style) for c in crossed.contents for style, _ in crossed.styles
    }


def test_a_row_is_what_its_two_files_draw(crossed):
    """One sum drawn and scored anew from the files in the folder."""
    row = next(row for row in read_rows(crossed.rows) if row["part"] == SUM)
    folder = crossed.folder / "adapters"
    (content,) = folder.glob(f"qr-steps-1-content-plain-{row['content'].replace(' ', '-')}-*.safetensors")
    (style,) = folder.glob(f"qr-steps-1-style-{row['style']}-{row['image'].replace(' ', '-')}-*.safetensors")
    drawn = generate(crossed.base, caption("<c>", "<s>"), [load(content), load(style)], seed=int(row["seed"]))
    truth = true_images([row["content"]], row["style"])[0]
    (wanted,) = evaluation.ground_truth_scores(
        tensor_from_pil(drawn), truth, row["content"], row["style"], row["image"], "plain"
    )
    for name in ("both", "nearest", "ssim", "leaked_content"):
        assert float(row[name]) == pytest.approx(wanted[name], abs=1e-3)


def test_what_is_there_is_not_made_again(crossed, monkeypatch):
    before = crossed.rows.read_text()
    for name in ("train", "generate"):
        monkeypatch.setattr(crossed_fusion, name, lambda **told: pytest.fail("made again"))
    crossing(crossed.settings.root).run(SPEC)
    assert crossed.rows.read_text() == before


def test_known_words_seeds_and_several_images_are_methods_of_their_own(tmp_path, monkeypatch):
    """The words are those of the losses beside the adapters, and the files' trigger words."""
    monkeypatch.setitem(crossed_fusion.COPIES, "style", 1)
    told = {"content_word": "robot", "style_word": "auto", "style_images": 2, "seed": 3}
    found = crossing(tmp_path, contents=1, **told)
    found.run(SPEC)
    (row,) = (row for row in read_rows(found.rows) if row["part"] == SUM)
    assert row["method"] == f"{SPEC}, robot content, auto style x2 seed 3" and row["image"].count("+") == 1
    (losses,) = (json.loads(path.read_text()) for path in found.folder.glob("word-*.json"))
    triggers = {load(path).header.trigger for path in (found.folder / "adapters").glob("*.safetensors")}
    assert triggers == {"robot", nearest_word(losses, "<s>")} and "plain" not in losses


def test_more_contents_than_there_are_and_no_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="asked for 100000 of"):
        crossing(tmp_path, contents=100_000)
    with pytest.raises(ValueError, match="images must be 1 or more, got 0"):
        crossing(tmp_path, images=0)


def made_up_rows(values: dict[str, np.ndarray]) -> list[dict[str, str]]:
    """Rows of sums with one score each: {method: (contents, style images)}."""
    return [
        dict(zip(FIELDS, (method, SUM, f"c{i}", f"s{j}", "x", "0", *[str(x)] * 9), strict=True))
        for method, table in values.items()
        for (i, j), x in np.ndenumerate(table)
    ]


def test_differences_are_paired_and_go_to_the_method_that_is_named():
    generator = np.random.default_rng(0)
    first = generator.random((4, 5))
    lines = scored_methods(made_up_rows({"one": first, "other": first + 0.25, "third": first[:2]}), "other")
    (difference,) = (x for x in lines if x.less)  # not of the third, which has other cells
    assert (difference.method, difference.less) == ("one", "other")
    for score in SCORES:
        assert difference.scores[score][:3] == pytest.approx((-0.25, -0.25, -0.25))
    assert "| `one` less `other` | -25 [-25, -25] |" in "\n".join(markdown_tables(lines))


def test_an_interval_over_seeds_is_wider_than_over_their_mean_if_seeds_differ():
    """Two seeds that differ by 1 everywhere: nothing else varies, and the interval is from the one to the other."""
    lines = scored_methods(made_up_rows({"a": np.zeros((3, 3)), "a seed 1": np.ones((3, 3))}))
    assert [x.method for x in lines] == ["a", "a seed 1", "a, 2 seeds"]
    assert lines[0].scores["both"][:3] == (0, 0, 0) and lines[1].scores["both"][:3] == (1, 1, 1)
    assert lines[2].scores["both"][:4] == (0.5, 0, 1, 18)


def test_methods_of_several_seeds_differ_seed_by_seed():
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 3, 3))
    lines = scored_methods(made_up_rows({"a": a, "b": a + 1, "a seed 1": b, "b seed 1": b + 1}))
    differences = {x.method: x.scores["ssim"] for x in lines if x.less}
    assert [*differences] == ["b", "b, 2 seeds"]
    assert all(x[:3] == pytest.approx((1, 1, 1)) for x in differences.values())


def test_the_findings_rows_can_be_read_and_have_their_tables():
    """The rows that are kept with the documentation."""
    folder = Path(__file__).parents[1] / "docs" / "results"
    for path in folder.glob("crossed_*_test.csv"):
        lines = scored_methods([row for row in read_rows(path) if row["part"] == SUM])
        assert lines and all(not math.isnan(x.scores["ssim"].low) for x in lines)
        with path.open(newline="") as file:
            assert tuple(next(csv.reader(file))) == FIELDS
