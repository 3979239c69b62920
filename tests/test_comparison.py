"""Studies: every job once, none lost, the same result wherever it is done. On pico bases, with real processes."""

import csv
import dataclasses
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

import pico
from commands import run
from qrlora import baselines
from qrlora.baselines.ziplora import ziplora
from qrlora.comparison import jobs, report, summary_tables
from qrlora.comparison.fusion_comparison import RunSummary, plan_comparison, run_comparison
from qrlora.comparison.image_pairs import pairs_from_csv, unrelated_prompts, world_pairs
from qrlora.comparison.result_store import ResultStore
from qrlora.comparison.run_job import run_job
from qrlora.comparison.settings import ComparisonSettings
from qrlora.files import load
from qrlora.world.captions import caption
from qrlora.world.drawings import known_contents
from qrlora.world.ground_truth import true_image
from qrlora.world.styles import HELD_OUT_STYLES, STYLES


def settings(**changes):
    common = {"base": str(pico.folder("flux")), "pairs": 2, "seeds": 2, "steps": 2, "device": "cpu"}
    return ComparisonSettings(**{**common, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that was done from first to last in this process, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    summary = run_comparison(plan_comparison(settings()), folder)
    assert summary.failed == {} and summary.missing == []
    return summary, folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The smallest study, done in this process: its plan and the bytes of its files."""
    folder, comparison = tmp_path_factory.mktemp("small"), plan_comparison(settings(**SMALL))
    assert run_comparison(comparison, folder).missing == []
    return comparison, files(folder)


SMALL = {"methods": ("qr",), "pairs": 1, "seeds": 1}


def files(folder):
    """{name: bytes} of all results and adapters."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.parent.name in KEPT}


KEPT = ("adapters", "results")


def test_27_pairs_are_27_contents_and_every_style_in_turn():
    pairs = world_pairs(27)
    assert len({pair.content.content for pair in pairs}) == 27
    assert len({pair.style.content for pair in pairs}) == 27
    counts = Counter(pair.style.style for pair in pairs)
    assert set(counts) == set(HELD_OUT_STYLES) and max(counts.values()) - min(counts.values()) <= 1
    for pair in pairs:
        assert pair.style.content != pair.content.content and pair.content.style == "plain"
        assert pair.truth is not None
        assert (pair.truth.content, pair.truth.style) == (pair.content.content, pair.style.style)


def test_no_content_of_the_development_split_is_in_the_test_split():
    everything = {split: world_pairs(120, split) for split in ("test", "dev")}
    things = {s: {x.content.content for x in p} | {x.style.content for x in p} for s, p in everything.items()}
    assert not things["test"] & things["dev"]
    for pairs in everything.values():
        assert len({pair.name for pair in pairs}) == 120
    with pytest.raises(ValueError, match=r"1..120 pairs of 20 contents and 6 styles"):
        world_pairs(121, "dev")


def test_unrelated_prompts_hold_nothing_that_was_trained():
    known = {caption(thing, style) for thing in known_contents() for style in STYLES}
    prompts = unrelated_prompts(4, world=True)
    assert len(set(prompts)) == 4 and set(prompts) <= known
    learnt = {pair.style.content for pair in world_pairs(27)}
    assert not any(caption(thing, style) in prompts for thing in learnt for style in STYLES)


def test_every_method_is_trained_on_the_same_images_at_the_same_rank_layers_and_steps(whole):
    comparison = whole[0].comparison
    for role in ("content", "style"):
        told = [comparison.training_settings[method][role] for method in ("qr", "lora")]
        differing = {name for name in told[0] if told[0][name] != told[1][name]}
        assert differing <= {"method", "learning_rate"}
    assert [x.pair.name for x in comparison.sample_jobs[:2]] == [x.pair.name for x in comparison.sample_jobs[2:4]]
    assert len({(x.seeds, x.unrelated, x.pair.prompt) for x in comparison.sample_jobs}) == 1


def test_a_style_goes_by_its_word_in_every_prompt_and_by_no_other_in_unrelated_ones(whole):
    usual, named = whole[0].comparison, plan_comparison(settings(style_word="chalk"))
    assert all("chalk" in x for x in whole[0].comparison.sample_jobs[0].unrelated[1:2]), "this word would stand in both"
    for before, after in zip(usual.sample_jobs, named.sample_jobs, strict=True):
        assert after.pair.prompt == "a <c> in chalk style" and not any("chalk" in x for x in after.unrelated)
        if before.variant not in ("none", "oracle"):
            assert before.content and after.content and after.content.identity == before.content.identity
            assert (
                after.style
                and after.style.settings["trigger"] == "chalk"
                and "chalk" in after.style.training_image.prompt
            )
        elif before.variant == "oracle":
            assert after.content and after.content.training_image.prompt == "a <c> in chalk style"


def test_the_ends_of_the_scale_stand_in_every_table(whole):
    tables = summary_tables.summarise(whole[0])
    rows = {(row["method"], row["score"]): row for row in tables.table}
    assert {method for method, _ in rows} == {"qr", "lora", "none", "oracle"}
    assert rows["none", "preserved"]["value"] == pytest.approx(1) and rows["qr", "preserved"]["value"] < 1
    assert (
        tables.trainable_parameters["none"] == 0
        and tables.trainable_parameters["lora"] > tables.trainable_parameters["qr"] > 0
    )


def test_a_setting_may_be_of_one_role_alone_and_the_last_word_counts():
    spec = "qr-by-role:learning_rate=0.01:style/learning_rate=0.002:content/steps=7"
    training_settings = plan_comparison(settings(methods=(spec,))).training_settings[spec]
    assert [training_settings[role]["learning_rate"] for role in ("content", "style")] == [0.01, 0.002]
    assert (training_settings["content"]["steps"], training_settings["style"]["steps"]) == (7, 2)
    assert [training_settings[role]["method"] for role in ("content", "style")] == ["qr-contrast", "qr"]


def test_methods_with_equal_training_share_their_adapters():
    """Three methods on two pairs: four adapters of qr, whoever uses them, four of lora, two oracles."""
    twice = plan_comparison(settings(methods=("qr", "lora", "qr:rank=4")))
    assert len(twice.train_jobs) == 4 + 4 + 2
    assert len({draw.identity for draw in twice.sample_jobs}) == len(twice.sample_jobs) - 2
    rules = plan_comparison(settings(methods=("qr", "lora", "qr:rank=4:rule=ties", "lora:rule=dare", "knots")))
    assert len(rules.train_jobs) == 4 + 4 + 2
    assert len({draw.identity for draw in rules.sample_jobs}) == len(rules.sample_jobs)


def test_a_comparison_that_is_done_does_nothing_again_and_finds_the_same(whole):
    summary, folder = whole
    before, told = files(folder), []
    again = run_comparison(plan_comparison(settings()), folder, on_job=lambda *job: told.append(job))
    assert told == [] and again.found_done == len(summary.comparison.train_jobs) + len(summary.comparison.sample_jobs)
    assert files(folder) == before
    assert repr(summary_tables.summarise(again)) == repr(
        summary_tables.summarise(summary)
    )  # NaN equals no NaN, but its repr does


def test_results_of_another_seed_or_version_are_neither_used_nor_counted(small, tmp_path, monkeypatch):
    first = run_comparison(small[0], tmp_path)
    other = run_comparison(plan_comparison(settings(**SMALL, first_seed=5)), tmp_path)
    assert other.found_done == 0 and len(other.done) == len(first.done) == 3
    assert "3 of 3 jobs done, 0 missing" in other.counts and "3 results of other settings" in other.counts
    monkeypatch.setattr(jobs, "__version__", "9.9")
    jobs.versions.cache_clear()
    try:
        newer = plan_comparison(settings(**SMALL))
        assert not {x.identity for x in newer.sample_jobs} & {x.identity for x in first.done}
        assert not {x.identity for x in newer.train_jobs} & {x.identity for x in first.comparison.train_jobs}
    finally:
        jobs.versions.cache_clear()


@pytest.mark.processes
def test_two_processes_give_the_bytes_of_one(small, tmp_path):
    comparison, wanted = small
    summary = run_comparison(comparison, tmp_path, workers=2)
    assert summary.failed == {} and files(tmp_path) == wanted


@pytest.mark.processes
def test_workers_end_without_a_word(tmp_path):
    """Drawing makes locks between processes, of which Python complains at the end if a worker was cut down."""
    told = f"--base {pico.folder('flux')} --pairs 1 --seeds 1 --steps 2 --methods qr --workers 2 -o {tmp_path / 'out'}"
    words = [sys.executable, "-m", "qrlora", "bench", "fusion", *told.split()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "leaked" not in done.stderr, done.stderr


@pytest.mark.processes
def test_a_ray_cluster_gives_the_bytes_of_one_process(small, tmp_path):
    pytest.importorskip("ray")
    comparison, wanted = small
    summary = run_comparison(comparison, tmp_path, ray="local")
    assert summary.failed == {} and files(tmp_path) == wanted


@pytest.mark.processes
def test_a_worker_that_dies_takes_one_job_with_it_which_is_reported_and_done_next_time(small, tmp_path):
    comparison, wanted = small
    killed = []

    def kill_one(*_):
        if not killed:
            victim = multiprocessing.active_children()[0]
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)

    summary = run_comparison(comparison, tmp_path, workers=2, on_job=kill_one)
    reasons = list(summary.failed.values())
    assert len([r for r in reasons if "its worker died (exit code -9)" in r]) == 1
    assert all("worker died" in r or "its adapter failed" in r for r in reasons)
    assert len(summary.done) + len(summary.missing) == len(summary.comparison.sample_jobs)
    assert run_comparison(comparison, tmp_path).missing == [] and files(tmp_path) == wanted


@pytest.mark.processes
@pytest.mark.parametrize("where", [{"workers": 1}, {"workers": 2}, {"ray": "local"}])
def test_a_job_whose_adapters_cannot_be_read_fails_alone_wherever_it_was_to_run(small, tmp_path, where):
    if where.get("ray"):
        pytest.importorskip("ray")
    lost = tmp_path / "adapters" / f"{small[0].sample_jobs[0].content.identity}.safetensors"

    def lose_one(ended, *_):
        if ended == len(small[0].train_jobs):
            lost.unlink()

    summary = run_comparison(small[0], tmp_path, **where, on_job=lose_one)
    (reason,) = summary.failed.values()
    assert "its adapters cannot be read" in reason and lost.name in reason
    assert [x.variant for x in summary.missing] == ["qr"] and len(summary.done) == 2


def test_a_job_that_fails_is_reported_and_the_rest_goes_on(tmp_path):
    wild = "lora:learning_rate=1e30:steps=5"
    summary = run_comparison(plan_comparison(settings(methods=("qr", wild), pairs=1, seeds=1)), tmp_path)
    assert {x.variant for x in summary.done} == {"qr", "none", "oracle"}
    assert [x.variant for x in summary.missing] == [wild]
    assert any("the loss is" in reason for reason in summary.failed.values())
    assert "3 of 4 jobs done, 1 missing" in summary.counts
    page = report.markdown_page(summary, summary_tables.summarise(summary), "test")
    assert "## Missing" in page and wild in page.split("## Missing")[1]


@pytest.mark.processes
def test_a_killed_run_goes_on_to_the_same_bytes(small, tmp_path):
    comparison, wanted = small
    words = f"--base {pico.folder('flux')} --methods qr --pairs 1 --seeds 1 --steps 2 --device cpu -o {tmp_path}"
    command = [sys.executable, "-m", "qrlora", "bench", "fusion", *words.split()]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not files(tmp_path) and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert 1 <= len(files(tmp_path)) < len(wanted)
    summary = run_comparison(comparison, tmp_path)
    assert summary.missing == [] and summary.failed == {}
    assert {name: data for name, data in files(tmp_path).items() if ".partial" not in name} == wanted


def test_a_full_disk_stops_the_study_and_the_next_run_does_what_is_left(small, tmp_path):
    """The operating system refuses files above 1 kB, as a full disk does, from the second result on."""
    comparison, wanted = small
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(*_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, allowed[1]))

    try:
        with pytest.raises(OSError, match="style of .*File too large.*make room and start again"):
            run_comparison(comparison, tmp_path, on_job=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
        signal.signal(signal.SIGXFSZ, before)
    assert len(files(tmp_path)) == 1
    assert run_comparison(comparison, tmp_path).missing == [] and files(tmp_path) == wanted


def test_a_damaged_result_is_named(small, tmp_path):
    summary = run_comparison(small[0], tmp_path)
    path = next((tmp_path / "results").glob("*.json"))
    path.write_text("{")
    with pytest.raises(ValueError, match=f"{path.name} is damaged.*delete it"):
        summary_tables.summarise(summary)
    path = next((tmp_path / "adapters").iterdir())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"{path.name} is damaged.*delete it"):
        run_comparison(small[0], tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ("qr", "lara")}, "no method 'lara'; did you mean 'lora'"),
        ({"methods": ("none",)}, "'none' is in every table"),
        ({"methods": ("qr", "qr")}, "each method once"),
        ({"methods": ("lora:learnin_rate=1",)}, "'learnin_rate' is no setting of a method here; choose among rank"),
        ({"methods": ("lora:styl/rank=8",)}, "'styl' is no role; before a slash stands content or style"),
        ({"methods": ("peft:vara",)}, "PEFT has no method 'vara' for layers; did you mean peft:vera"),
        ({"methods": ("peft:ln_tuning",)}, "peft:ln_tuning cannot learn here: it learns norms"),
        ({"methods": ("oft",), "equal": "parameters"}, "no rank makes peft:oft larger or smaller: leave it out"),
        ({"methods": ("lora:rank=many",)}, "rank must be a whole number"),
        ({"rank": 999}, "rank 999 is above"),
        ({"pairs": 1000}, "1..240 pairs"),
        ({"style_word": " "}, "the style needs a word of its own"),
        ({"style_word": "<c>"}, "the style needs a word of its own"),
        ({"methods": ("lora:style/steps=0",)}, "steps must be 1 or more"),
        ({"rank": 0}, "rank must be 1 or more"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"seeds": 0}, "seeds must be 1 or more"),
        ({"split": "train"}, "split must be one of test, dev"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(changes, said):
    with pytest.raises(ValueError, match=said):
        plan_comparison(settings(**changes))


def test_a_method_that_does_not_fit_the_base_is_refused_by_both_names(monkeypatch):
    only = dataclasses.replace(baselines.FUSIONS["qr"], name="only-sdxl", families=("sdxl",))
    monkeypatch.setitem(baselines.FUSIONS, "only-sdxl", only)
    with pytest.raises(ValueError, match="only-sdxl exists for sdxl only, and .*pico-flux is of flux"):
        plan_comparison(settings(methods=("qr", "only-sdxl")))


def test_every_fusion_method_goes_through_a_comparison(tmp_path, monkeypatch):
    """Those that learn alike share what was trained; each draws, with thing and style, and unrelated prompts."""
    few = dataclasses.replace(baselines.FUSIONS["ziplora"], fuse=ziplora(0.05, steps=3))
    monkeypatch.setitem(baselines.FUSIONS, "ziplora", few)
    on_sdxl = tuple(name for name, row in baselines.FUSIONS.items() if row.families)
    on_any = tuple(name for name in baselines.FUSIONS if name not in (*on_sdxl, "ziplora-published"))  # its step apart
    for family, methods in (("sdxl", on_sdxl), ("flux", on_any)):  # flux is the smaller one
        told = settings(base=str(pico.folder(family)), methods=methods, pairs=1, seeds=1, rank=2)
        summary = run_comparison(plan_comparison(told), tmp_path / family)
        assert summary.failed == {} and summary.missing == []
    assert len(summary.comparison.train_jobs) < 2 * len(on_any)


def test_any_of_pefts_methods_is_a_row_of_a_comparison_by_its_name(tmp_path):
    summary = run_comparison(
        plan_comparison(settings(methods=("peft:vera", "peft:dora:style/steps=3", "dora"), pairs=1)), tmp_path
    )
    assert summary.failed == {} and summary.missing == []
    steps = {
        spec: roles["style"]["steps"]
        for spec, roles in summary.comparison.training_settings.items()
        if "style" in roles
    }
    assert steps == {"peft:vera": 2, "peft:dora:style/steps=3": 3, "dora": 2}
    contents = [draw.content for draw in summary.comparison.sample_jobs if draw.variant != "none"]
    assert contents[1] and contents[2] and contents[1].identity == contents[2].identity, "peft:dora is what dora is"


def test_the_truncation_error_of_a_files_rank_is_reported(tmp_path):
    """Of adapters by their files' headers, of a merge by its own; where nothing is cut, nothing is said."""
    summary = run_comparison(plan_comparison(settings(methods=("qr", "dora", "ties"), pairs=1)), tmp_path)
    tables = summary_tables.summarise(summary)
    draw = next(x for x in summary.comparison.sample_jobs if x.variant == "dora")
    headers = [
        load(tmp_path / "adapters" / f"{x.identity}.safetensors").header for x in (draw.content, draw.style) if x
    ]
    assert set(tables.truncation_errors) == {"dora", "ties"}
    assert tables.truncation_errors["dora"] == max(header.config["truncation_error"] for header in headers)
    page = report.markdown_page(summary, tables, "command")
    assert f"- `ties`: {tables.truncation_errors['ties']:.1%}" in page and 0.01 < tables.truncation_errors["ties"] < 1


def test_an_unknown_base_is_one_line():
    with pytest.raises(OSError, match="neither a built-in name"):
        plan_comparison(settings(base="tiny-fluks"))


def test_equal_parameters_gives_the_rank_with_the_nearest_count():
    """pico-flux: qr trains r numbers for each output, lora r for each output and each input; PEFT's are counted."""
    comparison = plan_comparison(settings(equal="parameters", rank=8, methods=("qr", "lora", "dora")))
    ranks = {m: comparison.training_settings[m]["content"]["rank"] for m in ("qr", "lora", "dora")}
    shapes = [
        (x.out_features, x.in_features)
        for x in _base().target_layers(comparison.training_settings["qr"]["content"]["targets"]).values()
    ]
    wanted, both = sum(8 * o for o, _ in shapes), sum(o + i for o, i in shapes)
    magnitudes = sum(o for o, _ in shapes)  # DoRA learns one for each output beside A and B

    def nearest(more):
        return min(range(1, 9), key=lambda rank: abs(rank * both + more - wanted))

    assert ranks == {"qr": 8, "lora": nearest(0), "dora": nearest(magnitudes)}
    assert ranks["dora"] < ranks["lora"] < 8


def _base():
    from qrlora.families import open_base

    return open_base(pico.folder("flux"), "cpu")


def test_the_command_prints_the_table_and_writes_page_tables_and_sheet(whole, tmp_path, capsys):
    words = ["bench", "fusion", "--base", pico.folder("flux"), "--pairs", 2, "--seeds", 2, "--steps", 2]
    code, out, err = run(capsys, *words, "--device", "cpu", "-o", whole[1])
    assert code == 0, err
    assert "8 of 8 jobs done, 0 missing; 10 adapters" in out and "oracle" in out
    for name in ("rank.md", "rank.png", "rank-pictures.csv", "rank-table.csv", "rank-layers.csv"):
        assert str(whole[1] / name) in out and (whole[1] / name).stat().st_size
    with (whole[1] / "rank-pictures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 2 and len({(r["method"], r["pair"], r["seed"]) for r in rows}) == 16
    before = {path: path.read_bytes() for path in whole[1].glob("*.*")}
    code, _, err = run(capsys, *words[:-2], "--steps", 3, "--device", "cpu", "-o", whole[1])
    assert code == 2 and "rank.md: is there already: --overwrite replaces it" in err
    assert {path: path.read_bytes() for path in whole[1].glob("*.*")} == before
    code, out, _ = run(capsys, *words, "--device", "cpu", "-o", whole[1])
    assert code == 0 and "8 of 8 jobs done" in out
    code, _, err = run(capsys, *words, "--methods", "quer", "-o", tmp_path)
    assert code == 2 and "did you mean" in err and not list(tmp_path.iterdir())


def test_beside_a_new_page_no_table_or_sheet_of_the_page_before_is_left(small, tmp_path):
    """They would pass for tables of its settings."""
    summary = RunSummary(small[0], ResultStore(tmp_path))  # as where all failed: every table is empty
    beside = [tmp_path / f"rank-{name}.csv" for name in report.TABLES] + [tmp_path / "rank.png"]
    for path in beside:
        path.write_text("of other settings")
    written = report.write_report(summary, summary_tables.summarise(summary), tmp_path, "rank", "command")
    assert not [path for path in beside if path.exists() and path not in written]
    assert tmp_path / "rank-table.csv" not in written


def test_a_survey_finds_the_pictures_the_inputs_and_what_the_classifiers_said(whole, capsys):
    from PIL import Image

    from qrlora.survey.study_images import find_study_images

    words = ["bench", "fusion", "--base", pico.folder("flux"), "--pairs", 2, "--seeds", 2, "--steps", 2]
    assert run(capsys, *words, "--device", "cpu", "-o", whole[1])[0] == 0
    found, methods = find_study_images(whole[1], (), 1)
    assert methods == ("qr", "lora") and {x.image.size for x in found} == {found[0].image.size}
    with (whole[1] / "rank-pictures.csv").open() as file:
        rows = {(r["method"], r["pair"]): r for r in csv.DictReader(file) if r["seed"] == "0"}
    results = [x for x in found if x.kind == "result"]
    assert {(x.method, x.pair) for x in results} == {key for key in rows if key[0] in methods}
    for x in results:
        strip = Image.open(whole[1] / "results" / f"{rows[x.method, x.pair]['job']}.png")
        assert x.image.tobytes() == strip.crop((0, 0, strip.width // 2, strip.height)).convert("RGB").tobytes()
        assert x.scores["ssim"] == float(rows[x.method, x.pair]["ssim"]) and "seed" not in x.scores
    (first,) = (x for x in found if (x.kind, x.pair) == ("truth", results[0].pair))
    thing, style = results[0].pair.split(" in ")
    true = true_image(thing, style).convert("RGB").resize(first.image.size, Image.Resampling.LANCZOS)
    assert first.image.tobytes() == true.tobytes()


def test_every_encoder_says_how_near_an_image_is_to_its_true_image_where_that_is_known(tmp_path):
    import transformers
    from PIL import Image

    from qrlora.evaluation import open_encoder
    from test_evaluation import SMALL as SMALL_VIT

    folder = str(tmp_path / "dino-pico")
    transformers.ViTModel(transformers.ViTConfig(**SMALL_VIT, patch_size=8), add_pooling_layer=False).save_pretrained(
        folder
    )
    summary = run_comparison(plan_comparison(settings(**SMALL, encoders=(folder,))), tmp_path / "out")
    tables = summary_tables.summarise(summary)
    assert {"dino-pico-C", "dino-pico-S", "dino-pico-T"} <= {row["score"] for row in tables.table}
    for row in tables.pictures:
        (drawn,) = (tmp_path / "out").rglob(f"{row['job']}.png")
        wanted = open_encoder(folder, "cpu").likeness([Image.open(drawn)], true_image(*row["pair"].split(" in ")))
        assert row["dino-pico-T"] == pytest.approx(wanted[0], abs=1e-4)


def test_own_images_are_scored_by_encoders_that_every_row_names(tmp_path):
    import torch
    import transformers

    from test_evaluation import SMALL

    vit = transformers.ViTModel(transformers.ViTConfig(**SMALL, patch_size=8), add_pooling_layer=False)
    vit.save_pretrained(tmp_path / "dino-pico")
    true_image("owl", "plain").save(tmp_path / "owl.png")
    true_image("robot", "neon").save(tmp_path / "ink.jpg")
    (tmp_path / "mine.csv").write_text("content,style,style_shows\nowl.png,ink.jpg,robot\n")
    (pair,) = pairs_from_csv(tmp_path / "mine.csv")
    assert (pair.content.prompt, pair.style.prompt) == ("a <c>", caption("robot", "<s>")) and pair.truth is None
    own = settings(pictures=str(tmp_path / "mine.csv"), encoders=(str(tmp_path / "dino-pico"),), methods=("qr",))
    assert dataclasses.replace(own, encoders=()).encoders == ("dino-vits16", "clip-vit-base-patch32")
    summary = run_comparison(plan_comparison(own), tmp_path / "out")
    tables = summary_tables.summarise(summary)
    assert {row["method"] for row in tables.table} == {"qr", "none"}
    assert {row["score"] for row in tables.table} == {"preserved", "dino-pico-C", "dino-pico-S"}
    assert all("dino-pico@sha256:" in row["encoders"] and "bicubic" in row["encoders"] for row in tables.pictures)
    with torch.no_grad():
        vit.embeddings.cls_token += 1
    vit.save_pretrained(tmp_path / "dino-pico")
    (before, *_), (after, *_) = summary.comparison.sample_jobs, plan_comparison(own).sample_jobs
    assert after.identity != before.identity and after.content.identity == before.content.identity
    shutil.rmtree(tmp_path / "dino-pico")
    vit.save_pretrained(tmp_path / "moved" / "dino-pico")
    moved = plan_comparison(dataclasses.replace(own, encoders=(str(tmp_path / "moved" / "dino-pico"),))).sample_jobs[0]
    assert moved.identity == after.identity
    other = dataclasses.replace(moved, encoder_identities=before.encoder_identities)
    inputs = {job.identity: summary.store.adapter(job).read_bytes() for job in (before.content, before.style)}
    assert "is another encoder than the comparison's" in run_job(other, inputs).reason
    (tmp_path / "bad.csv").write_text("content,style\nowl.png,ink.jpg\n")
    with pytest.raises(ValueError, match="lacks the column 'style_shows'"):
        pairs_from_csv(tmp_path / "bad.csv")


def test_own_pairs_of_equal_file_names_are_named_with_their_folders_and_only_the_same_pair_is_refused(tmp_path):
    names = ("dogs/1.png", "cats/1.png", "cats/2.png", "inks/1.png", "oils/1.png")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        true_image("owl", "plain").save(tmp_path / name)
    table = tmp_path / "mine.csv"
    rows = ["dogs/1.png,inks/1.png,robot", "cats/1.png,oils/1.png,robot", "cats/2.png,oils/1.png,robot"]
    table.write_text("\n".join(["content,style,style_shows", *rows]))
    assert [pair.name for pair in pairs_from_csv(table)] == [
        "dogs/1.png in inks/1.png",
        "cats/1.png in oils/1.png",
        "2 in 1",
    ]
    table.write_text("\n".join(["content,style,style_shows", *rows, "dogs/../cats/2.png,oils/1.png,owl"]))
    with pytest.raises(ValueError, match=r"line 5: the pair of dogs/../cats/2.png and oils/1.png is there already"):
        pairs_from_csv(table)
