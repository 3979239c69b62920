"""Text files are read as editors write them: UTF-8, with a byte order mark or without; others are refused by name."""

import json

import pytest

import pico
from commands import run
from qrlora import files
from qrlora.comparison.image_pairs import pairs_from_csv
from qrlora.config import read_recipe
from qrlora.families import open_base

MARKS = {"UTF-8": "utf-8", "UTF-8 with a mark": "utf-8-sig"}


@pytest.mark.parametrize("encoding", MARKS.values(), ids=MARKS.keys())
def test_a_recipe_pairs_and_settings_are_read_as_editors_write_them(encoding, studio, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('prompt = "ein <c> für Jürgen"\nsteps = 7\n', encoding=encoding)
    config = read_recipe(recipe)
    assert (config.prompt, config.steps) == ("ein <c> für Jürgen", 7)
    table = tmp_path / "pairs.csv"
    table.write_text(f"content,style,style_shows\n{studio / 'dog.png'},{studio / 'cat.png'},Büste\n", encoding=encoding)
    (pair,) = pairs_from_csv(table)
    assert pair.content.file == (studio / "dog.png").read_bytes() and "Büste" in pair.style.prompt


@pytest.mark.parametrize("fault", ["a cell without end", "a cut row", "no head"])
def test_a_table_that_cannot_be_read_is_named_with_its_line(tmp_path, fault):
    """Python's csv module raises an error of its own, which is no ValueError."""
    from qrlora.reproduction.fusion_scores import _survey_levels
    from qrlora.survey.study_images import images_of_csv

    head = "content,style,style_shows,method,pair,picture,question,value,low,high"
    table = tmp_path / "table.csv"
    rows = {"a cell without end": f"{head}\n{'x' * 200_000}", "a cut row": f"{head}\na.png,b", "no head": ""}
    table.write_text(rows[fault])
    for read in (pairs_from_csv, images_of_csv, _survey_levels):
        with pytest.raises(ValueError, match="table.csv") as caught:
            read(table)
        assert ("line 2" in str(caught.value)) == (fault != "no head"), caught.value


def test_a_base_with_its_own_settings_and_a_peft_folder_open_whether_their_json_has_a_mark_or_not(tmp_path):
    import shutil

    import torch
    from safetensors.torch import save_file

    base = tmp_path / "base"
    shutil.copytree(pico.folder(), base)
    (base / "qrlora.json").write_text((base / "qrlora.json").read_text(), encoding="utf-8-sig")
    assert open_base(base, "cpu").defaults.rank == open_base(pico.folder(), "cpu").defaults.rank
    peft = tmp_path / "peft"
    peft.mkdir()
    tensors = {"base_model.model.a.to_q.lora_A.weight": torch.ones(2, 3)}
    save_file(
        {**tensors, "base_model.model.a.to_q.lora_B.weight": torch.ones(4, 2)}, peft / "adapter_model.safetensors"
    )
    settings = json.dumps({"lora_alpha": 4, "r": 2})
    (peft / "adapter_config.json").write_text(settings, encoding="utf-8-sig")
    assert torch.equal(files.load(peft).dense("a.to_q"), torch.full((4, 3), 4.0))


def test_text_in_another_encoding_is_refused_by_name(studio, tmp_path, capsys):
    recipe, table = tmp_path / "recipe.toml", tmp_path / "pairs.csv"
    recipe.write_text("steps = 7\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"recipe\.toml is not text in UTF-8"):
        read_recipe(recipe)
    code, _, err = run(capsys, "train", recipe, f"image={studio / 'dog.png'}")
    assert code == 2 and "recipe.toml is not text in UTF-8" in err
    table.write_text("content,style,style_shows\na,b,Büste\n", encoding="cp1252")
    with pytest.raises(ValueError, match=r"pairs\.csv is not text in UTF-8"):
        pairs_from_csv(table)


ROWS = {  # rows after the head, what the one line says
    "short": ("{dog},{cat},cat\n{dog},{cat}\n", "line 3: has 2 of the 3 columns"),
    "long": ("{dog},{cat},cat,more\n", "line 2: has 4 of the 3 columns"),
    "empty cell": ("{dog},,cat\n", "line 2: style is empty"),
    "no word": ("{dog},{cat},\n", "line 2: style_shows is empty"),
    "after blank lines": ("{dog},{cat},cat\n\n\n{dog}\n", "line 5: has 1 of the 3 columns"),
    "no picture": ("none.png,{cat},cat\n", "line 2"),
    "a folder": (".,{cat},cat\n", "line 2"),
    "semicolons": (None, "commas"),
}


@pytest.mark.parametrize("rows, message", ROWS.values(), ids=ROWS.keys())
def test_a_bad_row_of_pairs_names_file_and_line(rows, message, studio, tmp_path, capsys):
    table = tmp_path / "pairs.csv"
    places = {"dog": studio / "dog.png", "cat": studio / "cat.png"}
    head = "content,style,style_shows\n"
    table.write_text("content;style;style_shows\n" if rows is None else head + rows.format(**places))
    code, _, err = run(capsys, "bench", "fusion", "--pictures", table, "-o", tmp_path / "out")
    assert code == 2 and err.strip().splitlines()[-1].startswith(f"error: {table}"), err
    assert message in err
