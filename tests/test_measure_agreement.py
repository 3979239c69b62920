"""How strict the measures of a fusion are: the findings' tables from their rows, and what must be in new ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from qrlora.comparison.measure_agreement import accepted, agreement, split_by_content, strictness, thresholds_of
from qrlora.comparison.measured_examples import chosen_targets, examples
from qrlora.comparison.report import markdown_table
from qrlora.comparison.row_file import read_rows
from qrlora.comparison.statistics import cohens_kappa
from qrlora.families import open_base
from qrlora.world.ground_truth import true_images

DOCS = Path(__file__).parents[1] / "docs"


def test_the_rows_give_the_tables_of_the_page():
    threshold_half, half = split_by_content(read_rows(DOCS / "results" / "measures.csv"))
    thresholds = thresholds_of(threshold_half)
    of_page = (DOCS / "measures.md").read_text("utf-8").partition("results/measures.csv")[2].splitlines()
    for made in (strictness(half, thresholds), agreement(half, thresholds)):
        head, _, *lines = markdown_table(made)
        assert lines == [line for line in of_page if line in lines]
        assert head.replace("| image |", "| |") in of_page


def test_kappa_is_scikit_learns_and_has_no_value_where_both_say_one_thing():
    generator = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        first, second = generator.random((2, 50)) < share
        assert cohens_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert cohens_kappa([True, False], [True, False]) == 1 and np.isnan(cohens_kappa([True] * 3, [True] * 3))
    with pytest.raises(ValueError, match="equally many values, and some, got 0 and 0"):
        cohens_kappa([], [])


def test_thresholds_let_two_in_a_hundred_wrong_fusions_of_their_half_pass():
    values = np.random.default_rng(0).random((200, 4))
    names = ("content", "style", "ssim", "st-lpips")
    kinds = {kind: [dict(zip(names, row, strict=True)) for row in values] for kind in ("two contents", "two styles")}
    kinds |= {x: kinds["two contents"] for x in ("blurred", "blocky", "half the style", "unnamed style")}
    for name, threshold in thresholds_of(kinds).items():
        passed = [float((values[:, names.index(name)] > x).mean()) for x in (threshold, threshold - 0.01)]
        assert passed[0] <= 0.02 < passed[1]


def test_an_image_without_second_opinions_is_judged_by_the_other_measures():
    row = {"content": 0.9, "style": 0.5, "nearest": -0.1, "ssim": 0.95}
    thresholds = {"content": 0.2, "style": 0.8, "ssim": 0.9}
    assert accepted(row, thresholds) == {
        "content": True,
        "style": True,
        "both": True,
        "sure": False,
        "nearest": False,
        "ssim": True,
    }


def test_targets_are_the_first_of_one_list_and_their_images_right_and_wrong_in_nine_ways():
    assert chosen_targets(6)[:3] == chosen_targets(3) and len({*chosen_targets(6)}) == 6
    (content, style), base = chosen_targets(1)[0], open_base("tiny-flux", "cpu", "float32")
    images = examples(content, style, base, torch.Generator().manual_seed(0))
    truth = true_images([content], style)
    assert images["true"].equal(truth) and (images["true, through the VAE"] - truth).abs().mean() < 0.05
    assert len(images) == 11 and all((x - truth).abs().mean() > 0.01 for k, x in images.items() if k[:4] != "true")
