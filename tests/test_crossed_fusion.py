"""Contents and style images crossed: one adapter for a row or column of sums, and tables that know it."""

import csv
import errno
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import pico
from qrlora import evaluation, known_words
from qrlora.comparison import crossed_adapters, crossed_forgetting, crossed_rows, crossed_tables, statistics
from qrlora.comparison.crossed_adapters import CrossedAdapters
from qrlora.comparison.crossed_fusion import CrossedFusion
from qrlora.comparison.crossed_settings import CrossedSettings
from qrlora.comparison.crossed_tables import (
    CROSSED_PARTS,
    LABELS,
    ORACLE_PAIRS,
    SCORES,
    VALUES,
    WORDS,
    by_style,
    markdown_tables,
    scored_methods,
)
from qrlora.comparison.decomposition import (
    CONTENT_ALONE,
    FORGETTING_PARTS,
    OF_CONTENT_WORD,
    OF_STYLE_WORD,
    STYLE_ALONE,
    SUM,
    WITH_BOTH,
    WITH_CONTENT,
)
from qrlora.comparison.row_file import read_rows
from qrlora.files import load
from qrlora.known_words import nearest_word
from qrlora.merging import merge
from qrlora.sampling import generate
from qrlora.training import train
from qrlora.world.captions import caption
from qrlora.world.drawings import HANDS
from qrlora.world.ground_truth import true_images
from qrlora.world.image_tensors import tensor_from_pil
from qrlora.world.style_filters import known_filters

SPEC = "qr:steps=1"
FIELDS = (*LABELS, *VALUES)


def crossing(folder: Path, **told) -> CrossedFusion:
    return CrossedFusion(
        CrossedSettings(root=folder, **{"base": str(pico.folder()), "contents": 2, "styles": 1, "known": 1, **told})
    )


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    found = crossing(tmp_path_factory.mktemp("crossed"), forgetting=True)
    found.run(SPEC)
    return found


def test_three_adapters_give_two_sums_and_each_alone(crossed):
    rows, adapters = read_rows(crossed.rows.path), sorted((crossed.settings.folder / "adapters").glob("*.safetensors"))
    assert len(adapters) == 3
    assert [sum(row["part"] == part for row in rows) for part in CROSSED_PARTS] == [
        1,
        2,
        1,
        2,
        0,
        2 * 2,
        2,
        2 * 2,
        0,
        0,
    ]
    sums = [row for row in rows if row["part"] == SUM]
    assert {(row["content"], row["style"]) for row in sums} == {
        (c, style) for c in crossed.contents for style, _ in crossed.styles
    }


def test_a_row_is_what_its_two_files_draw(crossed):
    """One sum drawn and scored anew from the files in the folder."""
    row = next(row for row in read_rows(crossed.rows.path) if row["part"] == SUM)
    folder = crossed.settings.folder / "adapters"
    (content,) = folder.glob(f"qr-steps-1-content-plain-{row['content'].replace(' ', '-')}-*.safetensors")
    (style,) = folder.glob(f"qr-steps-1-style-{row['style']}-{row['image'].replace(' ', '-')}-*.safetensors")
    drawn = generate(crossed.base, caption("<c>", "<s>"), [load(content), load(style)], seed=int(row["seed"]))
    truth = true_images([row["content"]], row["style"])[0]
    (wanted,) = evaluation.ground_truth_scores(
        tensor_from_pil(drawn), truth, row["content"], row["style"], row["image"], "plain"
    )
    for name in ("both", "nearest", "ssim", "leaked_content"):
        assert float(row[name]) == pytest.approx(wanted[name], abs=1e-3)


def test_a_content_learnt_from_filtered_copies_has_rows_and_an_adapter_of_its_own(crossed, tmp_path):
    """Of the image and a copy by each known filter, for three times the updates; the style's adapter is the same."""
    filtered = crossing(tmp_path, content_filters=True)
    filtered.run(SPEC)
    assert {row["method"] for row in read_rows(filtered.rows.path)} == {"none", SPEC, f"{SPEC}, filtered content"}
    found = [load(x).header for x in (filtered.settings.folder / "adapters").glob("*.safetensors")]
    contents = [header for header in found if header.role == "content"]
    assert len(contents) == 2 and {x.config["steps"] for x in contents} == {3}
    copies = sorted(next((filtered.settings.folder / "adapters").glob("*content*/filtered")).glob("*.txt"))
    assert [x.read_text().strip() for x in copies] == [caption("<c>", name) for name in ("plain", *known_filters())]
    (style,) = (filtered.settings.folder / "adapters").glob("qr-steps-1-style-*.safetensors")
    same = load(crossed.settings.folder / "adapters" / style.name)
    assert all(torch.equal(load(style).dense(layer), same.dense(layer)) for layer in same.layers)


def test_what_is_there_is_not_made_again(crossed, monkeypatch):
    before = crossed.rows.path.read_text()
    made = (crossed_adapters, "train"), (crossed_rows, "draw_and_score"), (crossed_forgetting, "generate")
    for module, name in made:
        monkeypatch.setattr(module, name, lambda *given, **told: pytest.fail("made again"))
    crossing(crossed.settings.root, forgetting=True).run(SPEC)
    assert crossed.rows.path.read_text() == before


def test_forgetting_is_the_bases_own_captions_with_the_adapters_on_beside_its_own_images(crossed):
    """Drawn and scored anew from the files in the folder; of the base itself nothing is lost."""
    folder, known = crossed.settings.folder / "adapters", (crossed.known_contents[0], crossed.known_styles[0])
    own = generate(crossed.base, caption(*known), seed=0)
    rows = [row for row in read_rows(crossed.rows.path) if row["part"] in FORGETTING_PARTS]
    assert {(row["content"], row["style"]) for row in rows} == {known}
    for row in rows:
        present = [
            path for name in row["image"].split(" | ") for path in folder.glob(f"*-{dashed(name)}-*.safetensors")
        ]
        assert len(present) == (2 if row["part"] == WITH_BOTH else 1)
        adapters = [load(path) for path in present] if row["method"] != "none" else []
        drawn = tensor_from_pil(generate(crossed.base, caption(*known), adapters, seed=0, check_triggers=False))
        preserved = float(evaluation.ssim(drawn, tensor_from_pil(own)))
        assert float(row["preserved"]) == pytest.approx(preserved, abs=1e-3)
        assert (preserved == 1) == (row["method"] == "none")
        content = row["image"].split(" | ")[0]
        style = "plain" if row["part"] == WITH_CONTENT else crossed.styles[0][0]
        (wanted,) = evaluation.ground_truth_scores(drawn, true_images([known[0]], known[1])[0], *known, content, style)
        for name in ("both", "ssim", "leaked_content", "leaked_style"):
            assert float(row[name]) == pytest.approx(wanted[name], abs=1e-3)


def test_a_disk_that_fills_leaves_no_half_an_image_of_the_base(crossed, tmp_path, monkeypatch):
    folder = tmp_path / "crossed" / crossed.settings.folder.name
    shutil.copytree(crossed.settings.folder, folder)
    shutil.rmtree(folder / "base")
    (folder / "rows.csv").unlink()

    def fill(image, file, *given, **told):
        (file if hasattr(file, "write") else open(file, "wb")).write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", fill)
        with pytest.raises(OSError, match="No space left"):
            CrossedFusion(replace(crossed.settings, root=tmp_path / "crossed")).run(SPEC)
    assert not list((folder / "base").iterdir())


def dashed(name: str) -> str:
    return "".join(x if x.isalnum() else "-" for x in name)


def test_a_borrowed_word_is_scored_by_what_it_meant_and_is_in_no_other_caption(tmp_path):
    """With the adapter the word draws the adapter's image, which is not what the base drew."""
    style_word = crossing(tmp_path).known_styles[0]
    found = crossing(tmp_path, contents=1, content_word="robot", style_word=style_word, forgetting=True)
    found.run(SPEC)
    rows = {(row["method"], row["part"]): row for row in read_rows(found.rows.path) if row["preserved"]}
    assert {part for _, part in rows} == {WITH_CONTENT, OF_CONTENT_WORD, OF_STYLE_WORD}  # the one caption has the style
    method = f"{SPEC}, robot content"
    of_word, base = rows[method, OF_CONTENT_WORD], rows["none", OF_CONTENT_WORD]
    assert (of_word["content"], of_word["style"]) == (base["content"], base["style"]) == ("robot", style_word)
    content = found.adapters.content_adapter(SPEC, found.contents[0]).adapter
    drawn = tensor_from_pil(generate(found.base, caption("robot", style_word), [content], seed=0))
    likeness = evaluation.ssim(drawn, true_images(["robot"], style_word))
    assert float(of_word["ssim"]) == pytest.approx(float(likeness), abs=1e-3)
    assert rows["none", OF_STYLE_WORD]["style"] == style_word and float(base["preserved"]) == 1


def test_known_words_seeds_and_several_images_are_methods_of_their_own(tmp_path, monkeypatch):
    """The words are those of the losses beside the adapters, and the files' trigger words."""
    monkeypatch.setitem(known_words.COPIES, "style", 1)
    told = {"content_word": "robot", "style_word": "auto", "style_images": 2, "seed": 3}
    found = crossing(tmp_path, contents=1, **told)
    found.run(SPEC)
    (row,) = (row for row in read_rows(found.rows.path) if row["part"] == SUM)
    assert row["method"] == f"{SPEC}, robot content, auto style x2 seed 3" and row["image"].count("+") == 1
    (losses,) = (json.loads(path.read_text()) for path in found.settings.folder.glob("word-*.json"))
    triggers = {load(path).header.trigger for path in (found.settings.folder / "adapters").glob("*.safetensors")}
    assert triggers == {"robot", nearest_word(losses, "<s>")} and "plain" not in losses
    nearest = min((x for x in losses if x != "<s>"), key=losses.__getitem__)
    assert [row[name] for name in WORDS[:3]] == ["", "", nearest]
    assert float(row["style loss"]) == pytest.approx(losses[nearest] / losses["<s>"], abs=1e-4)


def test_the_nearest_word_is_taken_however_far_where_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(
        crossed_adapters,
        "search_words_of_file",
        lambda base, image, prompt, role, words: {"<s>": 1.0, "neon": 5.0},
    )
    shown = ["robot"]
    for wanted, word in (("nearest", "neon"), ("auto", "<s>")):
        found = crossing(tmp_path, style_word=wanted).adapters.style_adapter(SPEC, "dusk", shown)
        assert found.word == (word, "neon", 5.0) and found.adapter.header.trigger == word


def test_adapters_of_long_specs_and_many_images_have_names_that_file_systems_take(tmp_path):
    spec = "pissa:content/learning_rate=0.001:style/learning_rate=0.0007:steps=1:rank=1"
    found = crossing(tmp_path, contents=1, style_images=20)
    assert len(spec + "".join(found.styles[0][1])) > 255
    found.adapters.style_adapter(spec, *found.styles[0])
    (path,) = (found.settings.folder / "adapters").glob("*.safetensors")
    assert path.name.startswith("pissa-content-learning-rate-0-001-") and len(path.name) < 200


def test_words_that_differ_in_punctuation_alone_have_adapters_of_their_own(tmp_path):
    name = crossing(tmp_path).contents[0]
    for word in ("<x>", "[x]"):
        found = crossing(tmp_path, content_word=word).adapters.content_adapter(SPEC, name)
        assert found.adapter.header.trigger == word


def test_adapters_of_an_earlier_version_are_found_by_their_names_without_a_digest(crossed, tmp_path, monkeypatch):
    """But not by a spec or a word that had the same name then."""
    folder = tmp_path / crossed.settings.folder.name
    shutil.copytree(crossed.settings.folder, folder)
    for path in (folder / "adapters").iterdir():
        stem, _, digest = path.name.partition(".")[0].rpartition("-")
        assert len(digest) == 8
        path.rename(path.with_name(stem + path.suffix))
    made = []
    monkeypatch.setattr(crossed_adapters, "train", lambda **told: made.append(told) or train(**told))
    name = crossed.contents[0]
    earlier = CrossedFusion(replace(crossed.settings, root=tmp_path))
    earlier.adapters.content_adapter(SPEC, name)
    earlier.adapters.style_adapter(SPEC, *earlier.styles[0])
    assert not made
    other = CrossedFusion(replace(crossed.settings, root=tmp_path, content_word="[c]")).adapters
    assert other.content_adapter(SPEC, name).adapter.header.trigger == "[c]" and len(made) == 1


def test_adapters_drawn_with_other_known_words_are_in_a_folder_of_their_own(tmp_path):
    """The k-th of three known words is another than the k-th of six; the default's folders keep their names."""
    assert CrossedSettings(root=tmp_path).folder == tmp_path / "tiny-flux-test-6x6"
    names = {CrossedSettings(root=tmp_path, known=known).folder.name for known in (3, 6)}
    assert names == {"tiny-flux-test-6x6", "tiny-flux-test-6x6-known3"}


def test_two_adapters_are_combined_as_the_method_says_and_not_just_added(tmp_path):
    """TIES drops and elects signs: its image is that of the merged file, and another than the sum's."""
    spec, found = "ties:steps=4", crossing(tmp_path, contents=1)
    (style, shown), name = found.styles[0], found.contents[0]
    adapters = [
        found.adapters.content_adapter(spec, name).adapter,
        found.adapters.style_adapter(spec, style, shown).adapter,
    ]
    prompt = caption("<c>", "<s>")
    merged = generate(found.base, prompt, [merge(adapters, (1, 1), "ties")], seed=0)
    assert tensor_from_pil([found.pair_image(spec, 0)]).equal(tensor_from_pil(merged))
    assert not tensor_from_pil(merged).equal(tensor_from_pil(generate(found.base, prompt, adapters, seed=0)))


def test_a_rules_sums_are_of_the_adapters_that_the_method_has_trained(tmp_path, monkeypatch):
    """Nothing is trained anew, and the adapters alone, which no rule touches, are drawn once."""
    crossing(tmp_path, contents=1).run("lora:steps=2")
    monkeypatch.setattr(crossed_adapters, "train", lambda *given, **told: pytest.fail("trained again"))
    for spec in ("lora:rule=peft-linear:steps=2", "dare:steps=2"):
        found = crossing(tmp_path, contents=1)
        found.run(spec)
    rows = read_rows(found.rows.path)
    assert {row["method"] for row in rows if row["part"] in (CONTENT_ALONE, STYLE_ALONE)} == {"lora:steps=2"}
    sums = {row["method"]: row["ssim"] for row in rows if row["part"] == SUM}
    assert [*sums] == ["lora:steps=2", "lora:rule=peft-linear:steps=2", "dare:steps=2"]
    assert len(set(sums.values())) > 1


def test_the_oracle_has_one_adapter_of_each_true_image_and_as_many_updates_as_two_adapters(tmp_path):
    found = crossing(tmp_path, styles=2)
    found.run("oracle:steps=1")
    rows = read_rows(found.rows.path)
    assert {row["part"] for row in rows} == {ORACLE_PAIRS} and len(rows) == 2
    for row, content, (style, shown) in zip(rows, found.contents, found.styles, strict=True):
        assert (row["content"], row["style"], row["image"]) == (content, style, shown[0])
    adapters = sorted((found.settings.folder / "adapters").glob("*.safetensors"))
    assert len(adapters) == 2 and all(load(path).header.config["steps"] == 2 for path in adapters)
    image = tensor_from_pil([Image.open(next((found.settings.folder / "adapters").glob("oracle*/0.png")))])
    truths = [true_images([c], s) for c, (s, _) in zip(found.contents, found.styles, strict=True)]
    assert any(image.equal(truth) for truth in truths)


def test_a_method_without_two_adapters_is_refused_before_anything_is_made(tmp_path):
    for spec, reason in (("none", "trains no content and style"), ("style-aligned", "trains no content and style")):
        with pytest.raises(ValueError, match=reason):
            crossing(tmp_path).run(spec)
    with pytest.raises(ValueError, match="b-lora exists for sdxl only"):
        crossing(tmp_path, base=str(pico.folder("flux"))).run("b-lora")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_rows_of_an_earlier_version_are_kept_and_get_the_new_columns(tmp_path):
    found = crossing(tmp_path)
    old = [name for name in FIELDS if name not in (*WORDS, "preserved")]
    found.rows.path.write_text(",".join(old) + "\nqr,sum,cat,dusk,dog,0,1,1,1,0,1,1,1,0,0\n")
    again = crossing(tmp_path)
    (row,) = read_rows(again.rows.path)
    assert tuple(row) == FIELDS and row["ssim"] == "1" and row["style word"] == ""
    assert again.rows.has(("qr", "sum", "cat", "dusk", "dog", 0))


def test_a_row_that_a_stopped_call_left_half_written_is_made_anew_and_glued_to_no_other(crossed, tmp_path):
    whole = crossed.rows.path.read_text()
    found = crossing(tmp_path)
    for cut in (12, len(whole.splitlines()[-1]) // 2):
        found.rows.path.write_text(whole[:-cut])
        again = crossing(tmp_path).rows
        *others, last = csv.DictReader(whole.splitlines())
        assert read_rows(again.path) == others and not again.has([last[name] for name in LABELS])
        again.append([list(last.values())])
        assert again.path.read_text() == whole


def test_a_folder_of_another_base_of_the_same_name_is_refused_and_left_as_it_is(crossed, tmp_path):
    """A base that was trained on keeps its name; rows of both in one table would compare nothing.
    A folder of an earlier version, which does not say its base, is known by its adapters."""
    other = tmp_path / Path(crossed.settings.base).name
    shutil.copytree(crossed.settings.base, other)
    weights = next((other / "unet").glob("*.safetensors"))
    save_file({name: 1.5 * x for name, x in load_file(weights).items()}, weights, {"format": "pt"})
    folder = tmp_path / "crossed" / crossed.settings.folder.name
    shutil.copytree(crossed.settings.folder, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    settings = replace(crossed.settings, root=tmp_path / "crossed", base=str(other))
    with pytest.raises(ValueError, match="holds adapters and rows of another"):
        CrossedFusion(settings)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    del before[folder / "base.txt"]
    (folder / "base.txt").unlink()
    with pytest.raises(ValueError, match="holds adapters and rows of another"):
        CrossedFusion(settings)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    CrossedFusion(replace(settings, base=crossed.settings.base)).run(SPEC)  # its own is taken up


def test_a_file_of_rows_that_was_damaged_or_is_another_programs_is_named(tmp_path):
    path = crossing(tmp_path).rows.path
    head = path.read_text()
    for text, message in (
        (head + "qr,sum,cat\n", "line 2: has 3 of the 20 columns"),
        ("a,b\n1,2\n", r"is of another version or program \(columns a, b; "),
        (head.replace("\n", ",new\n") + "," * 20 + "\n", "is of another version or program"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"^{path}.*{message}"):
            crossing(tmp_path)
        assert path.read_text() == text


def test_words_that_are_empty_or_the_same_and_images_that_come_twice_are_refused(tmp_path):
    for words in ({"content_word": " "}, {"style_word": ""}, {"style_word": "<c>"}):
        with pytest.raises(ValueError, match="need words of their own in prompts"):
            CrossedSettings(root=tmp_path, **words)
    CrossedSettings(root=tmp_path, content_word="auto", style_word="auto")
    with pytest.raises(ValueError, match="style_images=300 of .* have one twice: take fewer"):
        crossing(tmp_path, style_images=300)


def test_rows_of_an_unknown_part_are_named():
    with pytest.raises(ValueError, match="rows of 'product', no part of a table here"):
        scored_methods([dict.fromkeys(FIELDS, "0") | {"part": "product"}])


def test_methods_are_checked_before_the_first_of_them_is_trained(tmp_path):
    settings = CrossedSettings(root=tmp_path, base=str(pico.folder()), contents=1, styles=1, known=1)
    for wrong, message in (
        ("qr:rule=nope", "no merging rule 'nope'"),
        ("lora:rank=9999", "rank 9999 is above"),
        ("none", "leave it out of the methods"),
    ):
        with pytest.raises(ValueError, match=message):
            crossed_adapters.check_methods(settings, [SPEC, wrong])


def test_more_contents_than_there_are_and_no_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="asked for 100000 of"):
        crossing(tmp_path, contents=100_000)
    with pytest.raises(ValueError, match="images must be 1 or more, got 0"):
        crossing(tmp_path, images=0)


def made_up_rows(values: dict[str, np.ndarray], part: str = SUM) -> list[dict[str, str]]:
    """Rows of sums with one score each: {method: (contents, style images)}."""
    return [
        dict(zip(FIELDS, (method, part, f"c{i}", f"s{j}", "x", "0", *[str(x)] * 9, *[""] * 5), strict=True))
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


def test_forgetting_is_compared_with_the_base_on_the_captions_that_both_have():
    """Of two adapters and three captions one caption has an adapter's word: five pairs, each 0.25 below the base."""
    base = np.arange(6).reshape(3, 2) / 6
    rows = made_up_rows({"none": base, "qr": base - 0.25}, WITH_CONTENT)
    for row in rows:
        row["image"], row["style"], row["preserved"] = row["style"], "sepia", row["ssim"]
    lines = scored_methods([row for row in rows if (row["method"], row["content"], row["image"]) != ("qr", "c2", "s1")])
    assert [(x.method, x.less, x.count) for x in lines] == [("none", "", 6), ("qr", "", 5), ("qr", "none", 5)]
    assert lines[2].scores["preserved"][:3] == pytest.approx((-0.25, -0.25, -0.25))
    assert lines[1].scores["ssim"].value == pytest.approx((base.sum() - base[2, 1]) / 5 - 0.25)


def test_what_a_word_meant_is_resampled_by_adapter_and_caption_and_a_sum_by_both_adapters():
    """Adapters that differ by 1 alone: the interval goes from the one to the other; captions add nothing."""
    for part, axis in ((OF_CONTENT_WORD, "content"), (OF_STYLE_WORD, "style")):
        rows = made_up_rows({"qr": np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])}, part)
        for row in rows:
            word, known = row["content"], row["style"]
            row |= {"image": f"image {word}", "preserved": row["ssim"]}
            row |= {axis: word, "style" if axis == "content" else "content": known}
        assert scored_methods(rows)[0].scores["both"] == (0.5, 0, 1, 6)
    rows = made_up_rows({"qr": np.array([[0.0, 0.0], [1.0, 1.0]])}, WITH_BOTH)
    for row in rows:
        row |= {"image": f"{row['content']} | {row['style']}+more", "content": "cat", "style": "sepia"}
        row["preserved"] = row["ssim"]
    assert scored_methods(rows)[0].scores["preserved"] == (0.5, 0, 1, 4)


def test_beside_the_oracle_stand_the_sums_of_its_pairs_alone_and_pairs_are_resampled():
    """Sums that are 1 on the diagonal and 0 elsewhere have 1 there, and the interval is that of three pairs."""
    pairs = np.diag([0.0, 0.5, 1.0])
    sums = made_up_rows({"qr": pairs, "lora": np.eye(3)[:2]})
    oracle = [
        row for row in made_up_rows({"oracle": np.ones((3, 3))}, ORACLE_PAIRS) if row["content"][1] == row["style"][1]
    ]
    lines = {(x.method, x.less): x for x in scored_methods(sums + oracle) if x.part == ORACLE_PAIRS}
    assert [*lines] == [("oracle", ""), ("qr", ""), ("lora", ""), ("qr", "oracle")]  # lora lacks a pair
    assert lines["qr", ""].count == 3 and lines["lora", ""].count == 2
    assert lines["qr", ""].scores["both"][:3] == (0.5, 0, 1) and lines["qr", "oracle"].scores["ssim"].value == -0.5


def test_by_style_has_each_styles_word_and_the_scores_without_and_with_it():
    values = np.array([[0.0, 0.25], [1.0, 0.75]])
    rows = made_up_rows({"qr": values, "qr, auto content, auto style": values / 2})
    for row in rows:
        row |= {"style word": "chalk", "style loss": "2.9" if row["style"] == "s1" else "1.14"}
    assert by_style(rows, "qr", "qr, auto content, auto style") == [
        {"style": "s0", "word, loss": "chalk, 1.1", "qr": "50, 50", "qr, auto content, auto style": "25, 25"},
        {
            "style": "s1",
            "word, loss": "`<s>`, chalk is far, 2.9",
            "qr": "50, 50",
            "qr, auto content, auto style": "25, 25",
        },
    ]
    assert by_style(rows, "qr", "lora") == []


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


def test_the_findings_rows_can_be_read_and_have_their_tables(monkeypatch):
    """The rows that are kept with the documentation."""
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    folder = Path(__file__).parents[1] / "docs" / "results"
    for path in folder.glob("crossed_*_test.csv"):
        rows = [row for row in read_rows(path) if row["part"] in (SUM, *FORGETTING_PARTS)]
        lines = scored_methods(rows)
        assert lines and all(not math.isnan(x.scores["ssim"].low) for x in lines)
        assert all(x.scores["preserved"].value == 1 for x in lines if x.method == "none")
        with path.open(newline="") as file:
            columns = tuple(next(csv.reader(file)))
        assert columns == FIELDS[: len(columns)] and set(SCORES) <= {name.removesuffix(" right") for name in columns}


def test_each_line_of_the_findings_tables_has_the_means_of_its_rows(monkeypatch):
    """Rows that are made anew, as on another base, and a page that still has the old ones, would be two stories."""
    monkeypatch.setattr(crossed_tables, "mean_over_crossed", mean_alone)
    docs, words, made = Path(__file__).parents[1] / "docs", ", auto content, auto style", set()
    shared = re.compile(rf":targets=attention:learning_rate=[0-9.]+{words}")  # left out of the merging rules' table
    page = (docs / "findings_tables.md").read_text().splitlines()
    lines = [re.sub(r" \[[^]]*\]", "", x) for x in page if re.match(r"\| `[^`]+`(, \d+| less `[^`]+`) \|", x)]
    against = {match[1] for x in lines if (match := re.match(r"\| `[^`]+` less `([^`]+)`", x))}
    for path in (docs / "results").glob("crossed_*.csv"):
        rows = read_rows(path)
        for method in {row["method"] for row in rows}:
            if method in against or shared.sub("", method) in against:
                tables = markdown_tables(scored_methods(rows, method))
                made |= {*tables, *(shared.sub("", x) for x in tables)}
    lines = [x for x in lines if "`qr, by role` less " not in x]  # of two names' rows
    assert len(lines) > 500 and [x for x in lines if x not in made] == []


def test_the_findings_first_table_has_the_means_of_its_rows():
    docs, words, copies = (
        Path(__file__).parents[1] / "docs",
        "auto content, auto style",
        "auto filtered content, auto style",
    )
    methods = ["lora", "qr", f"lora, {words}", f"qr, {words}", f"lora, {copies}", f"qr, {copies}", f"qr, {words} x8"]
    methods += [f"lora, {copies} x8", f"qr, {copies} x8", f"oracle, {words}"]
    table = (docs / "findings.md").read_text().partition("| sums: both right, SSIM |")[2].partition("\n\n")[0]
    bases, _, *lines = ([cell.strip(" *") for cell in x.strip("|").split("|")] for x in table.splitlines())
    assert len(lines) == len(methods)
    for column, base in enumerate(bases):
        rows = read_rows(docs / "results" / f"crossed_{base.replace('-', '_')}_test.csv")
        for method, (about, *cells) in zip(methods, lines, strict=True):
            of_method = [x for x in rows if x["method"] == method and x["part"] in (SUM, ORACLE_PAIRS)]
            means = (np.mean([100 * float(x[score]) for x in of_method]) for score in ("both", "ssim"))
            if cells[column]:
                assert cells[column] == ", ".join(f"{mean:.0f}" for mean in means), (about, base)


def test_the_findings_table_by_style_is_that_of_its_rows():
    docs, words = Path(__file__).parents[1] / "docs", "qr, auto content, auto style"
    table = (docs / "findings_tables.md").read_text().partition("\n| style | ")[2].partition("\n\n")[0]
    header, _, *lines = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines())
    bases = [cell.partition(":")[0] for cell in header if ":" in cell]
    for k, base in enumerate(bases):
        found = {style: cells[3 * k : 3 * k + 3] for style, *cells in lines}
        rows = read_rows(docs / "results" / f"crossed_{base.replace('-', '_')}_test.csv")
        made = {line["style"]: [line["word, loss"], line["qr"], line[words]] for line in by_style(rows, "qr", words)}
        assert found == made and len(made) == 6


def mean_alone(table):
    return statistics.Estimate(float(np.nanmean(table)), math.nan, math.nan, int(np.isfinite(table).sum()))


def test_contents_and_style_images_are_those_of_the_findings_rows(tmp_path):
    """So that further rows can go beside them."""
    found = CrossedAdapters(CrossedSettings(root=tmp_path, base=str(pico.folder())))
    rows = read_rows(Path(__file__).parents[1] / "docs" / "results" / "crossed_tiny_flux_test.csv")
    sums = [row for row in rows if row["part"] == SUM and row["method"] == "qr"]
    assert list(dict.fromkeys(row["content"] for row in sums)) == found.contents
    assert list(dict.fromkeys((row["style"], (row["image"],)) for row in sums)) == found.styles


def test_held_out_hands_are_styles_whose_true_image_is_known_by_name(tmp_path):
    """What is asked for is the content as that hand drew it: the drawing itself is right by every measure but the name
    of the hand, which the classifier cannot tell of every drawing."""
    found = crossing(tmp_path, truth="by name", styles=3)
    assert [style for style, _ in found.styles] == [hand for hand, about in HANDS.items() if about.held_out]
    found.run(SPEC)
    assert found.settings.folder.name.endswith("2x3-hands-known1")
    row = next(row for row in read_rows(found.rows.path) if row["part"] == SUM and row["style"] == "noto-v1")
    truth = true_images([row["content"]], row["style"])
    (scores,) = evaluation.ground_truth_scores(truth, truth[0], row["content"], row["style"], row["image"], "plain")
    assert scores["content"] == scores["nearest"] == 1 and scores["ssim"] == pytest.approx(1)
    assert float(row["ssim"]) < 0.99 and 0 <= float(row["leaked_style"]) <= 1
