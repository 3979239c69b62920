"""The paper's results on pico bases: what theory says of each must be in its table."""

import csv
import functools
import itertools
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import pico
from commands import run
from qrlora import plots
from qrlora.baselines import FUSIONS
from qrlora.cli.result_figures import figure_of
from qrlora.comparison import measured_examples, workers
from qrlora.comparison.crossed_adapters import check_methods
from qrlora.comparison.crossed_settings import CrossedSettings
from qrlora.comparison.crossed_tables import ORACLE_PAIRS, VALUES, label_of_seed
from qrlora.comparison.decomposition import SUM
from qrlora.comparison.method_specs import parse_method_spec
from qrlora.comparison.row_file import read_rows
from qrlora.comparison.run_job import JobFailure
from qrlora.comparison.summary_tables import summarise
from qrlora.files import load
from qrlora.linalg import leading_subspace
from qrlora.reproduction import attribute_sums, crossed_sums
from qrlora.reproduction.crossed_sums import VARIANTS, Variant
from qrlora.reproduction.fusion_scores import _name_in_paper
from qrlora.reproduction.initialisation_cost import WHOLE_SVD, initialise_as_in_paper
from qrlora.reproduction.paper_results import RESULTS, ReproductionRequest, reproduce, write_result
from qrlora.reproduction.published_numbers import TABLE_1, TABLE_1_SCORES, TABLE_4, TABLE_4_COLUMNS
from qrlora.reproduction.several_styles import classifier_features, nearest_style_set, true_images_of_orders
from qrlora.world.classifier_training import augment
from qrlora.world.drawings import HANDS, held_out_contents
from qrlora.world.ground_truth import true_images
from qrlora.world.styles import dusk, glitch


@pytest.fixture(scope="module")
def small_request(tmp_path_factory):
    """One folder for all: the figures share what is trained."""
    folder = tmp_path_factory.mktemp("reproduced")
    return ReproductionRequest(base=str(pico.folder("flux")), pairs=2, steps=4, folder=folder, device="cpu")


ORACLE = replace(VARIANTS[-1], settings={})


@pytest.fixture(scope="module", autouse=True)
def few_variants():
    """Two variants and the oracle of one sum, one of three attributes: each has adapters of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossed_sums, "VARIANTS", (VARIANTS[0], replace(VARIANTS[1], seeds=1), ORACLE))
        patch.setattr(crossed_sums, "CONTENTS", 1)
        for name, few in {"CONTENTS": 1, "STYLES": 1, "FRAMES": 1, "METHODS": ("qr",), "WORDINGS": ({},)}.items():
            patch.setattr(attribute_sums, name, few)
        yield


@pytest.fixture(scope="module")
def reproduced(small_request):
    """A result by its name, made once for the tests that only look."""
    return functools.cache(lambda name: reproduce(name, small_request))


def test_table2_is_what_autograd_says_and_lora_alone_starts_with_a_zero_gradient(reproduced):
    rows = {row["method"]: row for row in reproduced("table2").rows}
    assert all(row["error forward"] < 1e-5 and row["error gradient"] < 1e-5 for row in rows.values())
    assert rows["lora"]["gradient of A at the start"] == 0 < rows["lora"]["gradient of B at the start"]
    assert rows["qr"]["gradient of A at the start"] == "frozen" and 0 < rows["qr"]["gradient of B at the start"] <= 1
    assert rows["qr-output"]["gradient of B at the start"] == "frozen"
    assert rows["ortha"]["gradient of A at the start"] == "frozen" and rows["ortha"]["gradient"] == "dB = dL/dW Q"
    assert set(rows) == {"lora", "ortha", "qr", "qr-output"}


def test_table3_counts_the_papers_layers(reproduced):
    rows = {(row["base"], row["preset"]): row for row in reproduced("table3").rows}
    assert rows["sdxl", "self"]["layers"] == 280 and rows["sdxl", "attention"]["layers"] == 560
    assert rows["sdxl", "self"]["qr trains"] == 21_299_200 and rows["sdxl", "self"]["share"] == 0.5
    assert next(row for row in rows.values() if row["base"] == "flux-dev")["layers"] == 342
    assert next(row for row in rows.values() if row["base"] == "sd3-medium")["layers"] == 191


def test_table4_tells_a_shared_start_from_what_was_learnt(reproduced):
    """Q, R and A of one seed start alike and stay alike; A of another seed is as unlike as random numbers are."""
    found = reproduced("table4")
    pairs, mean, paper = found.rows[:2], found.rows[2], found.rows[3]
    assert len({row["pictures"] for row in pairs}) == 2
    assert all(row["A min"] > 0.9 > row["A, other seed max"] for row in pairs)
    assert all(row["dR max"] != row["dR, other seed max"] and row["B min"] != row["B, other seed min"] for row in pairs)
    assert all(row["Q min"] > 0.8 and row["R min"] > 0.8 for row in pairs)
    assert all(row["dR max"] == pytest.approx(row["dW of qr max"], abs=1e-4) for row in pairs)  # of one Q they are one
    assert mean["dR max"] == pytest.approx(sum(row["dR max"] for row in pairs) / 2)
    (means,) = ({row["matrix"]: row for row in rows} for rows in found.further.values())
    assert float(means["A"]["mean"].split()[0]) > 90 > float(means["A, other seed"]["mean"].split()[0])
    assert means["A"]["less the same seed"] == "" and means["A, other seed"]["less the same seed"].startswith("-")
    assert paper["dR max"] == pytest.approx(0.166, abs=1e-3) and paper["A, other seed max"] == ""
    assert len(TABLE_4) == 27 and all(len(row) == len(TABLE_4_COLUMNS) for row in TABLE_4)


def test_figure3_is_table4_layer_by_layer(reproduced):
    table, figure = reproduced("table4"), reproduced("figure3")
    for name in ("Q", "R", "dR"):
        assert max(row[name] for row in figure.rows) == table.rows[0][f"{name} max"]
        assert min(row[name] for row in figure.rows) == table.rows[0][f"{name} min"]


def test_figure8_starts_at_one_loss_and_falls_for_every_method(reproduced):
    rows = reproduced("figure8").rows
    assert {rows[0]["qr"], rows[0]["lora"], rows[0]["qr-direct"]} == {rows[0]["qr"]}
    assert rows[-1]["updates"] == 4 and all(rows[-1][m] < rows[0][m] for m in ("qr", "lora", "qr-direct"))
    for method in ("qr", "lora", "pissa"):  # several seeds, which differ once something has been trained
        assert rows[0][f"{method}: low"] == rows[0][f"{method}: high"]
        assert rows[-1][f"{method}: low"] < rows[-1][method] < rows[-1][f"{method}: high"]


def test_figure8_goes_on_after_the_last_whole_curve_and_ends_as_if_never_stopped(small_request, reproduced, tmp_path):
    whole, told = reproduced("figure8"), []

    def stopped(done, total, title, failure):
        told.append(title)
        if title == "qr, seed 2" and told.count(title) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce("figure8", replace(small_request, folder=tmp_path, on_job=stopped))
    again: list[str] = []
    found = reproduce("figure8", replace(small_request, folder=tmp_path, on_job=lambda *x: again.append(x[2])))
    assert {"qr, seed 0", "qr, seed 1", "qr, seed 2"} == set(told) and not {"qr, seed 0", "qr, seed 1"} & set(again)
    assert found.rows == whole.rows
    damaged = next((tmp_path / "curves").iterdir())
    damaged.write_text("[[0, 1.")
    with pytest.raises(ValueError, match=f"{damaged.name} is damaged .*delete it, and the same command does it anew"):
        reproduce("figure8", replace(small_request, folder=tmp_path))


def test_table1_has_the_means_of_the_study_beside_the_papers_of_the_same_backbone(small_request, reproduced):
    rows = {row["score"]: row for row in reproduced("table1").rows}
    measured = summarise(small_request.run_fusion_comparison(("lora", "qr")))
    for method in ("lora", "qr", "none", "oracle"):
        values = [row["ssim"] for row in measured.pictures if row["method"] == method]
        assert len(values) == 2 * 4
        assert rows["ssim"][method] == f"{statistics.fmean(values):.3f} ± {statistics.pstdev(values):.3f}"
    assert rows["DINO-S"]["paper: qr"] == "0.744 ± 0.077" and rows["user study"]["paper: lora"] == "2.86"
    assert rows["DINO-S"]["qr"] == "" == rows["ssim"]["paper: qr"]
    assert _name_in_paper("dino-vits16-S") == "DINO-S" and _name_in_paper("clip-vit-base-patch32-C") == "CLIP-C"
    for methods in TABLE_1.values():
        assert set(methods) <= set(FUSIONS) and all(len(x) == len(TABLE_1_SCORES) for x in methods.values())


def test_table1_takes_the_levels_of_a_survey_into_its_user_study_line(small_request, tmp_path):
    levels = "question,method,value,low,high\noverall,qr,3.5,3.1,3.9\noverall,lora,2.25,,\nstyle,qr,1,0,2\n"
    (tmp_path / "levels.csv").write_text(levels)
    found = reproduce("table1", replace(small_request, ratings=str(tmp_path / "levels.csv")), overwrite=True)
    row = next(row for row in found.rows if row["score"] == "user study")
    assert (row["qr"], row["lora"], row["none"]) == ("3.50 [3.10, 3.90]", "2.25", "")
    assert row["paper: lora"] == "2.86" and "levels.csv" in found.notes[1]
    (tmp_path / "levels.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not levels.csv of `qrlora survey report`"):
        reproduce("table1", replace(small_request, ratings=str(tmp_path / "levels.csv")), overwrite=True)


@pytest.mark.parametrize("name", ["rank", "steps", "workers", "pairs"])
def test_a_count_below_one_is_refused_before_anything_is_made(name):
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
        ReproductionRequest(**{name: 0})


def test_a_table_of_which_jobs_failed_is_refused_with_the_reason(small_request, monkeypatch):
    def broken(task):
        raise ValueError("no such fusion")

    monkeypatch.setitem(FUSIONS, "lora", replace(FUSIONS["lora"], fuse=broken))
    with pytest.raises(ValueError, match=r"3 of 4 jobs done, 1 missing;.*such as lora: .*: ValueError: no such fusion"):
        reproduce("table1", replace(small_request, pairs=1, steps=1))


def test_a_full_disk_stops_the_training_of_adapters_at_once(small_request, tmp_path, monkeypatch):
    """The next job would meet it as well."""
    ran = []

    def full(job, inputs):
        ran.append(job.title)
        return JobFailure("OSError: No space left on device", disk_full=True)

    monkeypatch.setattr(workers, "run_job", full)
    with pytest.raises(OSError, match=r"No space left on device; what is done is kept, make room and start again"):
        reproduce("figure3", replace(small_request, folder=tmp_path))
    assert len(ran) == 1


def test_figure14_begins_with_figure3(reproduced):
    figure3, figure14 = reproduced("figure3"), reproduced("figure14")
    assert len({row["pictures"] for row in figure14.rows}) == 2
    assert figure14.rows[: len(figure3.rows)] == figure3.rows


def test_the_truth_of_several_styles_is_one_after_the_other_in_any_order():
    assert torch.allclose(true_images_of_orders("robot", ("dusk",)), true_images(["robot"], "dusk"), atol=1 / 255)
    dusk_then_glitch = glitch(dusk(true_images(["robot"])))
    both = true_images_of_orders("robot", ("dusk", "glitch"))
    assert torch.allclose(both[:1], dusk_then_glitch, atol=1e-6) and not torch.allclose(both[1:], both[:1], atol=0.1)


def test_the_nearest_truth_tells_which_styles_a_picture_is_in():
    """True images, moved, blurred and noisy: three in four, where guessing names one in eight."""
    sets = [some for count in range(4) for some in itertools.combinations(("dusk", "glitch", "checker"), count)]
    generator, right = torch.Generator().manual_seed(0), 0
    things = held_out_contents()[::10]
    for thing in things:
        truths = {some: true_images_of_orders(thing, some) for some in sets}
        features = {some: classifier_features(truth) for some, truth in truths.items()}
        assert nearest_style_set(torch.cat([x[:1] for x in truths.values()]), features) == sets
        moved = torch.cat([augment(truths[x][:1], generator) for x in sets])
        right += sum(found == some for found, some in zip(nearest_style_set(moved, features), sets, strict=True))
    assert right / (8 * len(things)) > 0.7


def test_figure9_has_every_set_of_three_styles_for_each_method(reproduced):
    rows = reproduced("figure9").rows
    assert len(rows) == 2 * 8 and {row["attributes"] for row in rows} == {1, 2, 3, 4}
    assert rows[0]["styles"] == "plain" and rows[7]["styles"].count(" + ") == 2


def test_figure26_asks_for_what_was_learnt_and_for_what_the_base_knows(reproduced):
    found = reproduced("figure26")
    rows = [row for row in found.rows if row["method"] == "qr"]
    learnt = rows[0]["thing"], rows[0]["style"]
    asked_for = [(row["thing"] == learnt[0], row["style"] == learnt[1]) for row in rows]
    assert asked_for == [(True, True)] * 3 + [(True, False), (False, True), (False, False)]
    assert all(row["both"] <= min(row["thing recognised"], row["style recognised"]) for row in rows)
    assert "wearing a hat" in rows[1]["prompt"] and "riding a bicycle" in rows[2]["prompt"]


def test_the_papers_way_to_begin_gives_our_directions_and_leaves_the_weight_whole():
    W = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    Q, R, rest = initialise_as_in_paper(W, 8)
    assert torch.allclose(rest + (Q @ R).T, W, atol=1e-5)
    assert torch.allclose((Q.T @ leading_subspace(W, 8)).abs(), torch.eye(8), atol=1e-3)  # to signs
    assert torch.linalg.matrix_norm(rest, 2) == pytest.approx(float(torch.linalg.svdvals(W)[8]), rel=1e-4)


def test_beginning_is_timed_beside_the_papers_seconds(small_request, reproduced):
    rows = {(row["base"], row["start"]): row for row in reproduced("initialisation").rows}
    assert rows[small_request.base, "qr"]["times qr"] == 1
    assert rows["FLUX.1-dev", "the paper's figure"]["seconds"] == 300
    assert all(rows[small_request.base, start]["seconds"] > 0 for start in ("lora", WHOLE_SVD))


def test_results_of_one_backbone_are_made_on_its_built_in_base():
    backbones = {"figure14": "sdxl", "figure15": "flux", "figure16": "sd3"}
    backbones |= {"figure17": "sdxl", "figure18": "sd3", "figure19": "flux"}
    assert {name: RESULTS[name].base for name in backbones} == {name: f"tiny-{x}" for name, x in backbones.items()}


def test_crossed_has_a_line_for_each_seed_and_their_sum_and_what_each_took(reproduced):
    found = reproduced("crossed")
    sums = [(row["method"], row["less"], row["seconds"] != "") for row in found.rows if row["part"] == "sum"]
    assert sums == [
        ("qr:steps=4", "", True),
        ("qr:steps=4 seed 1", "", True),
        ("qr:steps=4, 2 seeds", "", False),
        ("lora:steps=4", "", True),
        ("lora:steps=4", "qr:steps=4", False),
    ]
    beside = [(row["method"], row["less"]) for row in found.rows if row["part"] == ORACLE_PAIRS]
    assert beside[:2] == [("oracle:steps=4", ""), ("qr:steps=4", "")] and ("lora:steps=4", "oracle:steps=4") in beside
    differences = found.further["The sums' differences to lora:steps=4"]
    assert [(row["part"], row["method"]) for row in differences] == [("sum", "qr:steps=4")]
    (line,) = found.figure.rows
    assert [cell.title for cell in line][2:] == ["lora", "oracle", "truth"]


def test_crossed_says_how_many_parameters_a_sum_trains_which_are_those_in_its_files(reproduced, small_request):
    """Of qr B alone, of lora A and B; the oracle's rank is theirs, on the layers of both."""
    rows = {row["method"]: row for row in reproduced("crossed").rows if row["trained"]}
    folder = small_request.folder / "crossed" / "pico-flux-test-1x1" / "adapters"

    def count(prefix: str, factors: str) -> int:
        files = [load(path) for path in folder.glob(f"{prefix}-steps-4-*-0-*.safetensors")]
        return sum(getattr(pair, x).numel() for file in files for pair in file.layers.values() for x in factors)

    assert rows["qr:steps=4"]["trained"] == f"{count('qr', 'B'):,}"
    assert rows["lora:steps=4"]["trained"] == f"{count('lora', 'AB'):,}"
    assert rows["oracle:steps=4"]["trained"] == f"{count('oracle', 'B'):,}"
    assert rows["qr:steps=4"]["rank"] == rows["lora:steps=4"]["rank"] == rows["oracle:steps=4"]["rank"] == "4"


def test_crossed_runs_the_methods_and_the_split_that_are_asked_for(small_request, tmp_path):
    request = replace(small_request, folder=tmp_path, steps=1, split="dev", methods=("lora:rank=2",))
    found = reproduce("crossed", request)
    sums = {row["method"]: row["rank"] for row in found.rows if row["part"] == "sum"}
    assert sums == {"lora:rank=2:steps=1": "2"}
    asked_for = crossed_sums._variants(replace(request, methods=("qr", "pissa:rank=3")))
    assert {x.method for x in asked_for} == {"qr:steps=1", "pissa:rank=3:steps=1"} and len(asked_for) == 5
    (folder,) = (tmp_path / "crossed").iterdir()
    assert "-dev-" in folder.name


def test_crossed_by_name_has_held_out_hands_as_styles_in_a_folder_of_its_own(small_request, tmp_path):
    request = replace(small_request, folder=tmp_path, steps=1, truth="by name")
    assert {x.method for x in crossed_sums._variants(request)} == {"qr:steps=1", "lora:steps=1"}
    found = reproduce("crossed", replace(request, methods=("qr:rank=2",)))
    (folder,) = (tmp_path / "crossed").iterdir()
    styles = {row["style"] for row in read_rows(folder / "rows.csv") if row["part"] == SUM}
    assert folder.name.endswith("-hands") and "hands" in found.title
    assert styles == {next(hand for hand, about in HANDS.items() if about.held_out)}
    page, _ = write_result("crossed", found, request, "qrlora reproduce crossed")
    assert "truth=by name" in page.read_text()
    with pytest.raises(ValueError, match="^truth must be one of exact, by name, got 'names'"):
        replace(request, truth="names")


def test_the_sums_of_each_merging_rule_stand_beside_those_of_the_same_adapters():
    """Of the methods' own adapters only; words and seeds are others'."""
    values = {"qr": 0.5, "qr:rule=ties": 0.25, "lora": 1.0, "ties:rank=8": 0.0, "qr:rule=dare, auto style": 0.0}
    rows = [
        {"method": method, "part": SUM, "content": f"c{k}", "style": "s", "image": "x"}
        | dict.fromkeys(VALUES, str(value))
        for method, value in values.items()
        for k in range(2)
    ]
    assert [(x["method"], x["less"], x["both"]) for x in crossed_sums._by_rule(rows)] == [
        ("qr:rule=ties", "qr", "-25 [-25, -25]")
    ]


def test_each_seed_of_training_has_its_sums_by_style_beside_those_under_known_words():
    """A label has its seed last, after the words."""
    rows = [
        {"method": label_of_seed(method, seed), "part": SUM, "content": "c", "style": "s", "image": "x"}
        | dict.fromkeys(VALUES, str(value))
        for method, value in (("qr", 0.25), ("qr, auto content, auto style", 0.5), ("lora", 1))
        for seed in (0, 5)
    ]
    tables = {title: rows for title, rows in crossed_sums._by_style(rows).items() if rows}
    assert [*tables] == ["By style, qr", "By style, qr seed 5"]
    (row,) = tables["By style, qr seed 5"]
    assert (row["qr seed 5"], row["qr, auto content, auto style seed 5"]) == ("25, 25", "50, 50")


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("figure9", "methods", ("qr",)),
        ("table1", "split", "dev"),
        ("attributes", "truth", "by name"),
        ("crossed", "encoders", ("dino-vits16",)),
        ("table4", "encoders", ("dino-vits16",)),
        ("measures", "ratings", "levels.csv"),
        ("crossed", "workers", 4),
        ("attributes", "workers", 2),
        ("figure8", "ray", "local"),
    ],
)
def test_a_setting_that_a_result_does_not_use_is_refused_and_not_ignored(small_request, name, setting, value):
    with pytest.raises(ValueError, match=f"^{setting}=.* changes nothing in {name}: it is for "):
        reproduce(name, replace(small_request, **{setting: value}))


def test_crossed_makes_every_sum_of_the_findings_table_and_the_table_has_all_that_it_makes(monkeypatch, tmp_path):
    """And a method's name, all variants of it, with the rates and words that the findings have.  On other bases the
    table has fewer."""
    monkeypatch.setattr(crossed_sums, "VARIANTS", VARIANTS)
    common, request = CrossedSettings(root=tmp_path), ReproductionRequest(base="tiny-flux")
    made = {
        replace(common, **x.settings, seed=k).labels(x.method)[2]
        for x in crossed_sums._variants(request)
        for k in range(x.seeds)
    }
    measured = {}
    for base in ("flux", "sd3", "sdxl"):
        rows = read_rows(Path(__file__).parents[1] / "docs" / "results" / f"crossed_tiny_{base}_test.csv")
        measured[base] = {row["method"] for row in rows if row["part"] in (SUM, ORACLE_PAIRS)}
        assert measured[base] - made == set()
    assert made == measured["flux"]
    (pissa,) = crossed_sums._variants(replace(request, methods=("pissa",)))
    assert pissa.settings == {"content_word": "auto", "style_word": "auto"} and "content/learning_rate" in pissa.method


def test_crossed_leaves_out_and_names_a_method_that_a_base_has_no_room_for(tmp_path):
    """tiny-sdxl's layers of time have 48 inputs, and two slots of rank 32 need 64."""
    common, too_large = CrossedSettings(root=tmp_path, base="tiny-sdxl"), "ortha:style/targets=time-embedding"
    fitting, (note,) = crossed_sums._those_that_fit(common, [Variant("qr", {}), Variant(too_large, {})])
    assert [x.method for x in fitting] == ["qr"]
    assert note.startswith("left out: ortha needs 64 inputs for the style, a layer of tiny-sdxl has 48")
    with pytest.raises(ValueError, match="give it rank=24 or less, or leave it out"):
        check_methods(common, [too_large])


def test_crossed_refuses_a_rank_that_no_method_fits_and_leaves_nothing_out(small_request, tmp_path):
    with pytest.raises(ValueError, match="rank 5000 is above"):
        reproduce("crossed", replace(small_request, folder=tmp_path, rank=5000, pairs=1))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_wrong_method_of_several_is_refused_before_any_is_trained(small_request, tmp_path):
    request = replace(small_request, folder=tmp_path, methods=("qr", "lora:rule=nope"), pairs=1)
    for name in ("crossed", "attributes"):
        with pytest.raises(ValueError, match="no merging rule 'nope'"):
            reproduce(name, request)
    with pytest.raises(ValueError, match="ties:steps=4 is no sum of adapters"):
        reproduce("attributes", replace(request, methods=("qr", "ties")))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_specs_own_rank_is_not_replaced_by_the_requests():
    request = ReproductionRequest(rank=8, steps=3)
    assert request.spec("lora:rank=16") == "lora:rank=16:steps=3"
    learn = parse_method_spec(request.spec("qr:content/rank=16")).learn
    assert [learn[role]["rank"] for role in ("content", "style")] == [16, 8]
    with pytest.raises(ValueError, match="lora:rank=8:rank=16: rank is set twice"):
        parse_method_spec("lora:rank=8:rank=16")


def test_lora_of_equal_parameters_trains_about_as_many_as_qr(small_request, tmp_path):
    common = CrossedSettings(root=tmp_path, base=small_request.base, contents=1, styles=1, known=1)
    of = {x: crossed_sums._rank_and_trained(common, x) for x in ("qr", "lora", "lora, equal parameters x4 seed 1")}
    trained = {x: int(row["trained"].replace(",", "")) for x, row in of.items()}
    assert trained["lora"] > 1.5 * trained["qr"]
    one, two = (crossed_sums._rank_and_trained(common, f"qr:targets={x}:rank=2") for x in ("to_q", "to_q,to_k"))
    assert {x["rank"] for x in (one, two)} == {"2"} and int(two["trained"]) == 2 * int(one["trained"])
    assert trained["lora, equal parameters x4 seed 1"] == pytest.approx(trained["qr"], rel=0.3)


def test_measured_targets_are_kept_and_other_encoders_refused(small_request, reproduced, monkeypatch):
    found = reproduced("measures")
    assert found.rows[0]["image"] == "true" and found.rows[0]["nearest"] == "100" and "lite0" not in found.rows[0]
    assert [row["nearest"] for row in found.rows[2:]] == ["0"] * 9
    assert [*found.further] == ["How far they agree"]
    monkeypatch.setattr(measured_examples, "_scores", lambda *given: pytest.fail("measured again"))
    assert reproduce("measures", small_request, overwrite=True).rows == found.rows
    with pytest.raises(ValueError, match="efficientnet-lite0,st-lpips, or none, got dino-vits16"):
        reproduce("measures", replace(small_request, encoders=("dino-vits16",)), overwrite=True)


NAMES = {result.make: name for name, result in reversed(RESULTS.items())}.values()
"""One name of each measurement."""


@pytest.mark.parametrize("name", NAMES)
def test_every_result_is_a_table_and_a_page_with_the_command_and_a_picture_where_the_paper_has_one(
    name, small_request, reproduced
):
    request = replace(small_request, pairs=1 if name == "figure10" else 2)  # seven ranks are enough to wait for
    found = reproduced(name) if request == small_request else reproduce(name, request)
    page, table = write_result(name, found, request, f"qrlora reproduce {name}")
    assert "qrlora reproduce" in page.read_text()
    with table.open() as file:
        assert len(list(csv.DictReader(file))) >= 2
    figure = figure_of(found)
    assert (figure is None) == (name in ("table2", "table3", "initialisation", "measures"))
    if figure is not None:
        picture = Image.open(plots.save(figure, small_request.folder / f"{name}.png")).convert("L")
        assert min(picture.size) > 300 and len(set(picture.get_flattened_data())) > 30


@pytest.mark.parametrize("name", ["table3", "figure3"])
def test_the_command_writes_a_results_table_and_page_and_picture(name, small_request, tmp_path, capsys):
    words = ["--base", small_request.base, "--pairs", 1, "--steps", 1, "--device", "cpu", "-o", tmp_path]
    code, out, err = run(capsys, "reproduce", name, *words)
    assert code == 0, err
    assert {x.suffix for x in tmp_path.glob(f"{name}.*")} == {".csv", ".md"} | (
        {".png"} if name == "figure3" else set()
    )
    assert "qrlora " in (tmp_path / f"{name}.md").read_text() and str(tmp_path / f"{name}.md") in out


def test_a_page_without_a_picture_leaves_none_of_an_earlier_page(small_request, tmp_path, capsys):
    words = ["reproduce", "table3", "--base", small_request.base, "--device", "cpu", "-o", tmp_path]
    assert run(capsys, *words)[0] == 0
    (tmp_path / "table3.png").write_text("of an earlier one")
    assert run(capsys, *words)[0] == 0 and not (tmp_path / "table3.png").exists()


def test_an_unknown_result_is_named_with_the_nearest(capsys, tmp_path):
    code, _, err = run(capsys, "reproduce", "tabel4", "-o", tmp_path)
    assert code == 2 and "did you mean 'table4'" in err and not list(Path(tmp_path).iterdir())
