"""From answers to a report: known raters give known figures; other programs read the exports."""

import csv
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

import ratings
from commands import run
from qrlora.survey.counted_answers import collect_answers
from qrlora.survey.export_answers import export_answers
from qrlora.survey.rater_store import Study, now
from qrlora.survey.report import write_report
from qrlora.survey.result_tables import result_tables

QR, LORA = "qr-secretname", "lora-secretname"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Six raters who find one method a level better; one who fails every check; one who has only begun."""
    study = Study(ratings.folder(tmp_path_factory.mktemp("study"), raters=7))
    study.begin_rater("link")
    for k in range(6):
        ratings.answer(study, study.begin_rater("link"), better=QR, seed=k)
    who = study.rater_of_token(study.begin_rater("prolific", "careless"))
    for entry in study.sheets[who.sheet]:
        item = study.items[entry.item]
        study.record_answers(
            who,
            entry.item,
            {q.name: 5 * (item.form == "levels") - (item.form == "pairs") for q in study.plan.of(item.form)},
            now() - 3000,
        )
    return study


@pytest.fixture(scope="module")
def tables(study):
    return result_tables(study.plan, collect_answers(study), list(study.pictures.values()))


def row(rows, **wanted):
    (found,) = [x for x in rows if all(x[name] == value for name, value in wanted.items())]
    return found


def test_levels_and_differences_are_the_means_of_the_answers_that_count(study, tables):
    given = [x for x in collect_answers(study).counted() if (x.question, x.role) == ("overall", "rating")]
    for method in (QR, LORA):
        mean = np.mean([x.value for x in given if x.first == method])
        assert row(tables["levels"], question="overall", method=method)["value"] == pytest.approx(mean)
    found = row(tables["differences"], question="overall")
    assert (found["first"], found["second"]) == (QR, LORA) and found["low"] > 0 and 0.5 < found["value"] < 1.5
    assert found["raters"] == 6 and found["inputs"] == 4 and found["p, Holm"] <= 0.05


def test_the_better_method_wins_every_comparison_and_so_has_no_finite_strength(tables):
    found = row(tables["wins"], question="preferred")
    assert found["value"] == 1 and np.isnan(found["low"]) and (found["second won"], found["tied"]) == (0, 0)
    assert found["all"] < 1, "the careless rater's answers count for everybody alone"
    assert np.isnan(row(tables["strengths"], method=QR)["value"])


def test_who_fails_the_checks_is_left_out_by_the_plans_rule_and_counted(study, tables):
    told = {x["what"]: x["raters"] for x in tables["raters"]}
    assert (told["begun"], told["finished"], told["left out: checks"], told["counted"]) == (8, 7, 1, 6)
    assert (
        row(tables["levels"], question="overall", method=LORA)["all"]
        > row(tables["levels"], question="overall", method=LORA)["value"]
    )
    assert row(tables["conduct"], measure="checks passed")["value"] == 1
    lenient = replace(study.plan, failed_checks=0, least_seconds=100.0)
    study_of = type("Opened", (), {**vars(study), "plan": lenient, "raters_and_answers": study.raters_and_answers})
    assert {x.excluded for x in collect_answers(study_of).people if x.finished} == {"too fast"}


def test_where_everybody_is_left_out_the_report_says_so_and_gives_what_all_answered(tmp_path):
    study = Study(ratings.folder(tmp_path))
    for _ in range(2):
        who = study.rater_of_token(study.begin_rater("link"))
        for entry in study.sheets[who.sheet]:
            item = study.items[entry.item]
            value = 5 if item.form == "levels" else -1
            study.record_answers(who, entry.item, {q.name: value for q in study.plan.of(item.form)}, now() - 3000)
    tables, written = write_report(study, tmp_path / "report")
    told = {x["what"]: x["raters"] for x in tables["raters"]}
    assert (told["finished"], told["left out: checks"], told["counted"]) == (2, 2, 0)
    found = row(tables["levels"], question="overall", method=QR)
    assert np.isnan(found["value"]) and found["all"] == 5 and found["raters"] == 0
    assert "every rater who has finished is left out" in written[-1].read_text()


def test_agreement_with_oneself_is_1_where_nothing_changes(tables):
    found = row(tables["agreement"], question="preferred", measure="the same answer to what came twice")
    assert found["value"] == 1 and found["answers"] == 12


def test_people_are_held_against_machines_where_these_have_spoken(study):
    """Classifiers that know what raters find have rank correlation 1 with them, and -1 if they say the opposite."""
    given = [
        x for x in collect_answers(study).counted() if (x.form, x.question, x.role) == ("levels", "overall", "rating")
    ]
    mean = lambda x: float(np.mean([y.value for y in given if (y.first, y.pair) == (x.method, x.pair)]))  # noqa: E731
    spoken = [
        replace(x, scores={"agrees": mean(x), "disagrees": -mean(x)}) if x.kind == "result" else x
        for x in study.pictures.values()
    ]
    rows = result_tables(study.plan, collect_answers(study), spoken)["machines"]
    assert row(rows, question="overall", machine="agrees")["value"] == pytest.approx(1)
    assert row(rows, question="overall", machine="disagrees")["value"] == pytest.approx(-1)
    assert row(rows, question="overall", machine="agrees")["pictures"] == 8


def test_the_report_is_a_page_with_plots_and_tables(study, tmp_path):
    _, written = write_report(study, tmp_path)
    names = {path.name for path in written}
    assert {"report.html", "levels.csv", "levels.png", "differences.png", "wins.png", "raters.csv"} <= names
    page = (tmp_path / "report.html").read_text()
    assert study.plan.sha256 in page and 'src="levels.png"' in page and "7 raters have finished" in page
    assert "http" not in page and "stopping rule is not met" not in page


def test_a_report_leaves_no_table_or_plot_of_an_earlier_one_and_no_other_file_goes(study, tmp_path, monkeypatch):
    (tmp_path / "strengths.png").write_text("somebody's")
    with monkeypatch.context() as fewer:
        fewer.setattr("qrlora.survey.report.result_tables", lambda *given: {**result_tables(*given), "strengths": []})
        write_report(study, tmp_path)
        assert (tmp_path / "strengths.png").exists()
    _, written = write_report(study, tmp_path)
    assert (tmp_path / "strengths.csv") in written
    (tmp_path / "notes.csv").write_text("somebody's")
    monkeypatch.setattr("qrlora.survey.report.result_tables", lambda *given: {**result_tables(*given), "strengths": []})
    _, written = write_report(study, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written} | {"notes.csv"}


def test_the_exported_answers_tell_everything_but_who_gave_them(study, tmp_path):
    answers, raters = export_answers(study, "csv", tmp_path)
    rows = list(csv.DictReader(answers.open()))
    assert len(rows) == len(collect_answers(study).given) and {x["excluded"] for x in rows} == {"", "checks"}
    text = answers.read_text() + raters.read_text()
    stored, _ = study.raters_and_answers()
    assert (
        not any(x["id"] in text or (x["outside_id_hash"] or "-" * 9) in text for x in stored) and "careless" not in text
    )
    with pytest.raises(ValueError, match="no export to 'excel': there are csv, label-studio"):
        export_answers(study, "excel", tmp_path)


def test_label_studios_tasks_fit_their_configuration(study, tmp_path):
    """Each control, object and choice that an annotation names is one of the configuration's."""
    tasks, config = export_answers(study, "label-studio", tmp_path)
    view = ET.parse(config).getroot()
    choices = {x.get("name"): {y.get("value") for y in x} for x in view.iter("Choices")}
    objects = {x.get("name"): x.get("value")[1:] for x in view.iter("Image")}
    names = [x.get("name") for x in view.iter() if x.get("name")]
    assert len(names) == len(set(names)), "Label Studio refuses a name that comes twice"
    loaded = json.loads(tasks.read_text())
    assert sum(len(x["annotations"]) for x in loaded) == len({(x.rater, x.item) for x in collect_answers(study).given})
    for task in loaded:
        assert set(objects.values()) <= task["data"].keys()
        for result in (x for annotation in task["annotations"] for x in annotation["result"]):
            assert result["to_name"] in objects and set(result["value"]["choices"]) <= choices[result["from_name"]]


def test_the_commands_go_from_pictures_to_a_report(tmp_path, capsys):
    folder, table = tmp_path / "study", ratings.table(tmp_path)
    words = ("survey", "new", table, "-o", folder, "--raters", "3", "--form", "pairs")
    code, out, _ = run(capsys, *words)
    assert code == 0 and "Power" in out and "survey serve" in out
    assert run(capsys, *words)[0] == 2, "a plan is not replaced"
    code, _, err = run(capsys, "survey", "report", folder)
    assert code == 2 and "nobody has finished yet" in err
    study = Study(folder)
    token = study.begin_rater("prolific", "5f00")
    for again in (token, study.begin_rater("link")):
        ratings.answer(study, again)
    code, out, err = run(capsys, "survey", "report", folder)
    assert code == 0 and "report.html" in out and "2 of 3 raters have finished" in err
    code, out, _ = run(capsys, "survey", "export", folder, "--to", "label-studio")
    assert code == 0 and "tasks.json" in out
    code, out, _ = run(capsys, "survey", "erase", folder, "5f00")
    assert code == 0 and study.progress()["finished"] == 1
    code, _, err = run(capsys, "survey", "erase", folder, "5f00")
    assert code == 2 and "no rater '5f00'" in err
    code, _, err = run(capsys, "survey", "serve", folder, "--listen", "0.0.0.0")
    assert code == 2 and "without encryption" in err
    code, _, err = run(capsys, "survey", "serve", tmp_path)
    assert code == 2 and "holds no plan.toml" in err
