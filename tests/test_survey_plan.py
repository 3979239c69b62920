"""A rating study before the first answer: where its pictures come from, the plan, balanced sheets, power."""

import csv
import io
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import ratings
from qrlora.survey import plan as plans
from qrlora.survey.new_study import make_study
from qrlora.survey.power import power
from qrlora.survey.sheets import make_items, make_sheets
from qrlora.survey.study_images import find_study_images
from qrlora.survey.texts import languages, texts

DESIGNS = [
    (2, 27, 1, 5, 8),
    (4, 16, 4, 4, 6),
    (2, 3, 1, 2, 1),
    (3, 9, 2, 3, 3),
    (4, 3, 1, 2, 12),
    (2, 6, 1, 0, 6),
    (1, 4, 1, 3, 0),
]
"""Methods, pairs, seeds; inputs and comparisons of a sheet."""


@pytest.mark.parametrize(("methods", "pairs", "seeds", "inputs", "comparisons"), DESIGNS)
def test_sheets_are_balanced(methods, pairs, seeds, inputs, comparisons):
    plan = ratings.plan(methods, inputs, comparisons)
    stuff = make_items(plan, ratings.pictures(methods, pairs, seeds))
    names = {item: key[0] for key, item in stuff.results.items()} | {k: key[:2] for key, k in stuff.duels.items()}
    sheets = make_sheets(plan, stuff)
    shown, flipped, used = Counter(), Counter(), Counter()
    for sheet in sheets:
        items = [stuff.items[x.item] for x in sheet]
        assert all(a.pair != b.pair for a, b in zip(items, items[1:], strict=False)), "an input comes twice in a row"
        mine = Counter(names[x.item] for x in sheet if x.item in names)
        for kind in (str, tuple):  # methods by levels, two methods by pairs: each equally often
            assert len({n for name, n in mine.items() if isinstance(name, kind)}) <= 1
        asked = {"levels": methods * inputs, "pairs": comparisons}
        assert sum(x.role == "repeat" for x in items) == sum(min(2, n) for n in asked.values())
        assert len({x.item for x in sheet}) == len(sheet), "an item has one answer of each rater"
        seen = [x.item for x in sheet if x.item in names]
        again = {again: first for first, again in stuff.again.items()}
        for place, x in enumerate(sheet):
            if x.item in again:
                first = next(k for k, y in enumerate(sheet) if y.item == again[x.item])
                assert first + 1 < place and (items[place].form == "levels" or x.flipped != sheet[first].flipped)
        shown.update(seen)
        used.update({stuff.items[k].pair for k in seen if stuff.items[k].form == "levels"})
        turned = [x.flipped for x in sheet if isinstance(names.get(x.item), tuple)]
        assert abs(2 * sum(turned) - len(turned)) <= 2, "sides are not changed half of the time"
        flipped.update(names[x.item] for x in sheet if x.flipped and x.item in names)
    assert len(sheets) == plan.sheets
    if inputs:
        assert max(used.values()) - min(used[pair] for pair in stuff.seeds) <= 1, "inputs do not take turns"
    of_duel = Counter({name: sum(shown[k] for k in names if names[k] == name) for name in set(flipped)})
    assert all(abs(2 * flipped[name] - of_duel[name]) <= 2 for name in flipped)
    for form in plan.forms:
        counts = [shown[k] for k in names if stuff.items[k].form == form]
        assert max(counts) - min(counts) <= 2, "pictures are not shown equally often"


def test_sheets_depend_on_the_seed_alone_and_not_on_the_names_of_methods():
    plan = ratings.plan()
    first = make_sheets(plan, make_items(plan, ratings.pictures()))
    assert make_sheets(plan, make_items(plan, ratings.pictures())) == first
    assert make_sheets(replace(plan, seed=1), make_items(plan, ratings.pictures())) != first
    renamed = replace(plan, methods=("zebra", "apple"))
    as_before = {"m0": "zebra", "m1": "apple"}
    others = [replace(x, method=as_before.get(x.method, "")) for x in ratings.pictures()]
    assert make_sheets(renamed, make_items(renamed, others)) == first


@pytest.mark.parametrize("truth", [True, False], ids=["truth known", "own pictures"])
def test_checks_have_answers_that_are_known(truth):
    plan = ratings.plan(questions=(ratings.OVERALL, replace(ratings.OVERALL, name="content"), ratings.BETTER))
    stuff = make_items(plan, ratings.pictures(truth=truth))
    checks = [stuff.items[k] for kinds in stuff.known.values() for kind in kinds for k in kind]
    noise = [x for x in checks if x.left == "noise"]
    assert noise and all(high <= 1 for x in noise for _, _, high in x.expected)
    for x in checks:
        if x.form == "pairs":
            assert x.expected == (("preferred", 1, 1),) and x.left.startswith("truth" if truth else "content")
            assert x.right == "noise" or x.right.split()[1] != x.left.split()[1]
    kept = [x for x in checks if x.form == "levels" and x.left != "noise"]
    assert {name for x in kept for name, *_ in x.expected} == ({"overall", "content"} if truth else {"content"})


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"comparisons": 3, "methods": 3}, "multiple of 3"),
        ({"inputs": 9}, "inputs = 9, but there are 8"),
    ],
)
def test_a_design_that_cannot_be_balanced_is_refused(told, reason):
    plan = ratings.plan(**{"inputs": 3, "comparisons": 4 if told.get("methods") else 2} | told)
    plan = replace(plan, comparisons=4) if "methods" in told else plan
    with pytest.raises(ValueError, match=reason):
        make_sheets(plan, make_items(plan, ratings.pictures(len(plan.methods))))


def test_a_study_needs_3_inputs_and_every_methods_picture():
    plan = ratings.plan()
    with pytest.raises(ValueError, match="3 inputs or more"):
        make_items(plan, ratings.pictures(pairs=2))
    lacking = [x for x in ratings.pictures() if (x.method, x.pair) != ("m1", "pair 3")]
    with pytest.raises(ValueError, match="'pair 3' has no seed of which each of m0, m1"):
        make_items(plan, lacking)


def test_power_grows_with_raters_and_is_about_5_percent_where_there_is_nothing_to_see():
    plan = ratings.plan(raters=16, sheets=32, effect=1.0, win_rate=0.75)
    stuff = make_items(plan, ratings.pictures(pairs=12))
    few, as_planned, many = power(plan, stuff, simulations=25)
    assert [x["raters"] for x in (few, as_planned, many)] == [8, 16, 32]
    assert few["levels"] < many["levels"] and few["pairs"] < many["pairs"] and many["levels"] > 0.6
    (_, nothing, _) = power(replace(plan, effect=0.0, win_rate=0.5), stuff, simulations=30)
    assert nothing["levels"] <= 0.2 and nothing["pairs"] <= 0.2


def test_new_copies_pictures_under_names_that_say_nothing(tmp_path):
    path = ratings.table(tmp_path)
    place = Image.Exif()
    place[0x010E], place[0x8825] = (
        "qr-secretname",
        {1: "N", 2: (48.0, 51.0, 29.0)},
    )  # what it shows, and where it was taken
    image = Image.open(tmp_path / "qr-secretname 0.png")
    image.save(tmp_path / "qr-secretname 0.png", exif=place)
    folder = tmp_path / "study"
    make_study(path, folder, raters=4, simulations=1)
    plan = plans.read_plan(folder)
    table = plans.read_pictures_csv(folder, plan)
    files = sorted(path.name for path in (folder / "pictures").iterdir())
    assert files == sorted(x.file for x in table) and len(files) == 4 * 4 + 1
    assert all(re.fullmatch(r"[0-9a-f]{24}\.webp", name) for name in files)
    sizes = set()
    for x in table:
        data = (folder / "pictures" / x.file).read_bytes()
        image = Image.open(io.BytesIO(data))
        sizes.add(image.size)
        assert image.format == "WEBP" and not image.getexif() and b"secretname" not in data
    assert sizes == {(32, 32)}, "the middle square, as training sees it, all of one size"
    original = Image.open(tmp_path / "qr-secretname 0.png").crop((4, 0, 36, 32))
    copy = next(x.file for x in table if (x.method, x.pair) == ("qr-secretname", "pair 0"))
    assert np.array_equal(np.asarray(Image.open(folder / "pictures" / copy).convert("RGB")), np.asarray(original))


def test_the_plan_is_a_file_for_people_and_reads_back_as_it_is(tmp_path):
    folder = ratings.folder(tmp_path, title='Which "one"?', contact="a@b.example")
    plan = plans.read_plan(folder)
    assert plan.title == 'Which "one"?' and plan.methods == ("qr-secretname", "lora-secretname")
    assert plan.power and {"raters", "levels", "pairs"} == set(plan.power[0])
    assert plans.write_plan(plan, tmp_path / "again").text == plan.text
    assert [q.name for q in plan.questions] == ["overall", "content", "style", "preferred"]
    with pytest.raises(FileExistsError, match="is there already"):
        make_study(tmp_path / "mine.csv", folder)


@pytest.mark.parametrize(
    ("line", "instead", "reason"),
    [
        ("raters = 4", "raters = 1", "2 raters or more"),
        ("repeats = 2", "repeats = -1", "repeats must be 0 or more"),
        ("seed = 0", "seeds = 0", "seeds"),
        ("seed = 0", "seed = ", "plan.toml: "),
        ('name = "content"', 'name = "overall"', "each of another name"),
        ('form = "pairs"', 'form = "stars"', "'stars'"),
        ("inputs = 4", "inputs = 0", "'overall' is never asked"),
    ],
)
def test_a_plan_with_a_mistake_is_refused_with_the_reason(tmp_path, line, instead, reason):
    folder = ratings.folder(tmp_path)
    text = (folder / "plan.toml").read_text()
    assert line in text
    (folder / "plan.toml").write_text(text.replace(line, instead, 1))
    with pytest.raises(ValueError, match=reason):
        plans.read_plan(folder)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("method,pair,content,style\n", "lacks the column 'picture'"),
        ("method,pair,content,style,picture\n", "has no pictures"),
        ("method,pair,content,style,picture\nqr,a,c.png,,p.png\n", "line 2: style is empty"),
        ("method,pair,content,style,picture\nqr,a,c.png,c.png,none.png\n", "line 2: .*none.png"),
        ("method,pair,content,style,picture,seed\nqr,a,c.png,c.png,c.png,x\n", "line 2: seed must be"),
        ("method,pair,content,style,picture\n" + "qr,a,c.png,c.png,c.png\n" * 2, "line 3: 'qr' has two pictures"),
    ],
)
def test_a_table_with_a_mistake_is_refused_with_its_line(tmp_path, rows, reason):
    Image.new("RGB", (32, 32)).save(tmp_path / "c.png")
    (tmp_path / "t.csv").write_text(rows)
    with pytest.raises(ValueError, match=reason):
        find_study_images(tmp_path / "t.csv", (), 1)


def test_an_unknown_method_language_form_or_source_is_refused(tmp_path):
    table = ratings.table(tmp_path)
    with pytest.raises(ValueError, match="no pictures of 'dora', but of qr-secretname"):
        make_study(table, tmp_path / "s", methods=["dora"])
    with pytest.raises(ValueError, match="no texts in 'xx', but in de, en"):
        make_study(table, tmp_path / "s", language="xx")
    with pytest.raises(ValueError, match="no form 'stars'"):
        make_study(table, tmp_path / "s", forms=["stars"])
    with pytest.raises(ValueError, match="pairs need two methods"):
        make_study(table, tmp_path / "s", methods=["qr-secretname"])
    with pytest.raises(FileNotFoundError, match="qrlora compare"):
        make_study(tmp_path, tmp_path / "s")
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        make_study(tmp_path / "none", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_pictures_table_is_the_plans(tmp_path):
    folder = ratings.folder(tmp_path)
    rows = list(csv.DictReader((folder / "pictures.csv").open()))
    assert {row["kind"] for row in rows} == {"result", "content", "style", "noise"}
    with (folder / "pictures.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="not the one that plan.toml was made with"):
        plans.read_pictures_csv(folder, plans.read_plan(folder))


def test_every_language_has_every_text():
    english = texts("en")
    for language in languages():
        told = texts(language)
        assert told.keys() == english.keys()
        for name in ("ages", "experiences", "questions"):
            assert len(told[name]) == len(english[name])
        assert [q["name"] for q in told["questions"]] == [q["name"] for q in english["questions"]]


def test_a_damaged_folder_of_a_comparison_is_named(tmp_path):
    page = tmp_path / "rank.md"
    page.write_text("x")
    with pytest.raises(ValueError, match="rank.md does not say what it was made with"):
        find_study_images(tmp_path, (), 1)
    page.write_text("Settings: pairs=1, split=test, style_word=<s>, pictures=\n")
    (tmp_path / "rank-pictures.csv").write_text("job,seed\n1\n")
    with pytest.raises(ValueError, match="rank-pictures.csv, line 2: has 1 of the 2 columns; write it anew"):
        find_study_images(tmp_path, (), 1)


def test_of_two_comparisons_in_a_folder_a_study_is_made_of_the_one_whose_page_is_given(tmp_path):
    for name in ("rank", "parameters"):
        (tmp_path / f"{name}.md").write_text("Settings: pairs=1, split=test, style_word=<s>, pictures=\n")
        (tmp_path / f"{name}-pictures.csv").write_text(f"job,seed,method,pair\nof-{name},0,qr,pair\n")
    (tmp_path / "results").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "results" / "of-parameters.png")
    with pytest.raises(ValueError, match="two comparisons.* give the page of one: .*rank.md or .*parameters.md"):
        find_study_images(tmp_path, (), 1)
    found, _ = find_study_images(tmp_path / "parameters.md", (), 1)
    (result,) = (x for x in found if x.kind == "result")
    assert result.image.getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(FileNotFoundError, match="none.md"):
        find_study_images(tmp_path / "none.md", (), 1)
