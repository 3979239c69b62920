"""A comparison that draws with each adapter by itself says which of the two is weak."""

import csv
import math
import re
from collections import Counter

import pytest

import pico
from commands import run
from qrlora import evaluation
from qrlora.comparison import summary_tables
from qrlora.comparison.decomposition import (
    BASE_ALONE,
    EVERYDAY_CONTENTS,
    EVERYDAY_STYLES,
    PART_MEANINGS,
    decomposed_prompts,
)
from qrlora.comparison.fusion_comparison import plan_comparison, run_comparison
from qrlora.comparison.image_pairs import pairs_from_csv, world_pairs
from qrlora.comparison.known_word_scale import known_word_pairs, known_word_scale
from qrlora.comparison.settings import ComparisonSettings
from qrlora.comparison.weak_adapter import verdicts_of_methods
from qrlora.families import open_base
from qrlora.files import load
from qrlora.sampling import generate
from qrlora.world.captions import caption
from qrlora.world.drawings import held_out_contents, known_contents
from qrlora.world.ground_truth import true_image, true_images
from qrlora.world.image_tensors import tensor_from_pil
from qrlora.world.styles import STYLES
from test_decompose import small_encoder


def test_every_prompt_asks_for_what_its_truth_shows_and_for_no_more():
    """The trigger of a role is there if and only if the role is asked for; all other words are known to the base."""
    (pair,) = world_pairs(1)
    found = decomposed_prompts(pair, ["content", "style"], [0, 1, 2], "<s>")
    assert Counter(x.part for x in found) == {part: 3 for part in [*PART_MEANINGS][1:]}
    for x in found:
        content_asked, style_asked = "<c>" in x.prompt.split(), "<s>" in x.prompt.split()
        assert content_asked != style_asked and x.adapters in ("both", "content" if content_asked else "style")
        assert (x.content in held_out_contents()) == content_asked == (x.style in STYLES or x.style == "plain")
        words = (x.style, pair.content.content) if content_asked else (x.content, pair.style.style)
        assert words[0] in x.prompt and words[1] in (x.content, x.style)
    known = [x.content for x in found if x.part == "known content, style"]
    assert len(set(known)) == 3 and set(known) <= set(known_contents()) - {pair.style.content}
    alone = decomposed_prompts(pair, [], [0], "<s>")
    assert [(x.part, x.adapters) for x in alone] == [("known content, known style", "none")]
    assert not {"<c>", "<s>"} & set(alone[0].prompt.split())
    (content_only,) = (
        x for x in decomposed_prompts(pair, ["content"], [0], "<s>") if x.adapters == "content" == x.part
    )
    assert content_only.prompt == pair.content.prompt and content_only.style == "plain"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    told = {"base": str(pico.folder()), "pairs": 1, "seeds": 2, "steps": 2, "device": "cpu", "decompose": True}
    folder = tmp_path_factory.mktemp("decomposed")
    return run_comparison(plan_comparison(ComparisonSettings(**told, methods=("qr", "style-aligned"))), folder), folder


def test_each_part_is_drawn_with_its_own_adapters(compared):
    """Scores, computed anew from the adapters' files."""
    summary, _ = compared
    assert summary.failed == {} and summary.missing == []
    job = next(job for job in summary.comparison.sample_jobs if job.variant == "qr")
    base, rows = open_base(pico.folder(), "cpu"), summary.store.result(job)["parts"]
    files = {role: load(summary.store.adapter(x)) for role, x in (("content", job.content), ("style", job.style)) if x}
    assert len(rows) == len(job.decomposed) == 6 * 2
    for x in job.decomposed:
        acting = [(adapter, 1.0) for role, adapter in files.items() if x.adapters in (role, "both")]
        image = generate(base, x.prompt, acting, seed=x.seed, check_triggers=False)
        truth = true_images([x.content], x.style)[0]
        labels = (x.content, x.style, job.pair.style.content, job.pair.content.style)
        (wanted,) = evaluation.ground_truth_scores(tensor_from_pil(image), truth, *labels)
        (row,) = (row for row in rows if (row["part"], row["seed"]) == (x.part, x.seed))
        assert row["ssim"] == pytest.approx(wanted["ssim"], abs=1e-3) and row["both"] == wanted["both"]


def test_tables_have_a_row_for_each_part_that_a_method_has(compared, capsys):
    """A method without a style adapter has none alone; the base alone is the most that words can reach."""
    summary, folder = compared
    tables = summary_tables.summarise(summary)
    parts = {method: [] for method in ("qr", "style-aligned", "none")}
    for row in tables.parts:
        if row["score"] == "ssim":
            parts[row["method"]].append(row["part"])
    assert parts["none"] == ["known content, known style"] and parts["qr"] == [*PART_MEANINGS][1:]
    assert set(parts["qr"]) - set(parts["style-aligned"]) == {"style", "known content, style"}
    assert not any(row["score"].startswith("leaked") for row in tables.parts)
    words = ["--base", pico.folder(), "--methods", "qr,style-aligned", "--pairs", 1, "--seeds", 2, "--steps", 2]
    code, out, err = run(capsys, "compare", *words, "--decompose", "--device", "cpu", "-o", folder)
    assert code == 0, err
    page = (folder / "rank.md").read_text()
    assert "Each adapter by itself" in out and "known content, style" in page
    (line,) = (line for line in out.splitlines() if line.startswith("qr: "))
    assert "weak" in line and f"- {line}" in page.splitlines()
    with (folder / "rank-parts.csv").open() as file:
        assert {row["part"] for row in csv.DictReader(file)} == set(PART_MEANINGS)


def estimate(method, part, score, value, half=0.02):
    """A row of the table of parts."""
    interval = {"value: low": value - half, "value: high": value + half}
    return {"method": method, "part": part, "score": score, "value": value, **interval}


def accuracies(content, style, half=0.02):
    """Rows of one method, and of the base alone, which draws known things less surely than known styles."""
    return [
        estimate("qr", "content, known style", "content", content, half),
        estimate("qr", "known content, style", "style", style, half),
        estimate("none", BASE_ALONE, "content", 0.6),
        estimate("none", BASE_ALONE, "style", 0.9),
    ]


def test_a_methods_weak_adapter_is_told_by_what_the_base_reaches_with_known_words():
    (said,) = verdicts_of_methods(accuracies(0.54, 0.36), {}).values()
    assert said.startswith("The style adapter is the weak one") and "at 0.40" in said and "at 0.90" in said
    (said,) = verdicts_of_methods(accuracies(0.54, 0.81), {}).values()
    assert said.startswith("Too close to say")
    (said,) = verdicts_of_methods(accuracies(0.54, 0.36, half=0.5), {}).values()
    assert said.startswith("Too close to say")
    (said,) = verdicts_of_methods(accuracies(0.54, 0.36, half=math.nan), {}).values()  # of one pair
    assert said.startswith("Too close to say")
    assert verdicts_of_methods(accuracies(0.5, 0.5)[:1] + accuracies(0.5, 0.5)[2:], {}) == {}


def test_own_images_have_a_verdict_by_encoders_on_the_scale_of_everyday_words(tmp_path, capsys):
    """The scores of every part are those of the images, computed anew from the adapters' files."""
    encoder = str(small_encoder(tmp_path / "dino"))
    true_images_of = {"owl.png": true_image("owl", "plain"), "ink.png": true_image("robot", "neon")}
    for name, image in true_images_of.items():
        image.save(tmp_path / name)
    (tmp_path / "mine.csv").write_text("content,style,style_shows\nowl.png,ink.png,robot\n")
    told = ["--pictures", tmp_path / "mine.csv", "--encoders", encoder, "--seeds", 1, "--steps", 2, "--methods", "qr"]
    words = [*told, "--base", pico.folder(), "--device", "cpu", "--decompose", "-o", tmp_path / "out"]
    code, out, err = run(capsys, "compare", *words)
    assert code == 0, err
    assert any(re.match("qr: (The (content|style) adapter is the weak one|Too close)", x) for x in out.splitlines())
    with (tmp_path / "out" / "rank-parts.csv").open() as file:
        values = {(x["part"], x["score"]): float(x["value"]) for x in csv.DictReader(file) if x["method"] == "qr"}
    base, (path,) = (
        open_base(pico.folder(), "cpu"),
        (x for x in (tmp_path / "out" / "adapters").glob("*.safetensors") if load(x).header.role == "content"),
    )
    pairs = known_word_pairs(EVERYDAY_CONTENTS, EVERYDAY_STYLES)
    drawings = generate(base, [caption(*x) for x in pairs], seed=[0] * len(pairs))
    scale = known_word_scale(evaluation.open_encoder(encoder, "cpu").features, "content", pairs, drawings)
    (asked,) = (x for x in decomposed_prompts(*own_pair(tmp_path), [0], "<s>") if x.part == "content, known style")
    drawn = generate(base, asked.prompt, [load(path)], seed=0, check_triggers=False)
    wanted = scale.scores(drawn, true_images_of["owl.png"])[0]
    assert values["content, known style", "content_comes_out"] == pytest.approx(wanted, abs=1e-3)


def own_pair(folder):
    """The arguments of `decomposed_prompts` for the pair of a folder's table."""
    return pairs_from_csv(folder / "mine.csv")[0], ["content", "style"]
