"""Verbs: each in the file of its name, every setting in both spellings, old verbs and names with a word of warning."""

import inspect
import re
from pathlib import Path

import pytest

import pico
from commands import run
from qrlora import cli
from qrlora.baselines import FUSIONS
from qrlora.cli import generate, merge, progress_bar, train
from qrlora.cli.named_values import VerbCommand, named_values_as_options, options_as_named_values
from qrlora.cli.verbs import OLD_VERBS, VERBS
from qrlora.config import TrainConfig
from qrlora.families import open_base
from qrlora.initialisation_methods import METHODS
from qrlora.layouts import LAYOUTS
from qrlora.merging import RULES

FOLDER = Path(cli.__file__).parent


def commands():
    """{verb: its click command}, those of groups under "survey new"."""
    import typer.main

    from qrlora.cli.command_line import app

    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {x}": y for x, y in inner.items()} if inner else {name: command}
    return found


COMMANDS = commands()
OPTIONS = [
    (verb, parameter.name)
    for verb, command in COMMANDS.items()
    for parameter in command.params
    if any(x.startswith("--") for x in parameter.opts)
]


def test_each_verb_is_in_the_file_of_its_name():
    for name, verb in VERBS.items():
        assert inspect.getsourcefile(
            getattr(verb.run, "registered_commands", [verb])[0].callback if name == "survey" else verb.run
        ) == str(FOLDER / f"{name}.py")
        assert verb.example.startswith(f"qrlora {name}")


@pytest.mark.parametrize("verb, name", OPTIONS)
def test_every_option_of_every_verb_may_be_written_name_equals_value(verb, name):
    """`--content-strengths 0,1`, content_strengths=0,1 and content-strengths=0,1 are one and the same."""
    command = COMMANDS[verb]
    assert isinstance(command, VerbCommand)
    option = next(p for p in command.params if p.name == name)
    long = next(x for x in option.opts if x.startswith("--"))
    for written in (long.lstrip("-"), long.lstrip("-").replace("-", "_")):
        if option.is_flag:
            assert named_values_as_options([f"{written}=true"], command.params) == [option.opts[0]]
            assert named_values_as_options([f"{written}=false"], command.params) == []
        else:
            assert named_values_as_options(["a", f"{written}=x=y"], command.params) == ["a", option.opts[0], "x=y"]


def test_a_file_an_options_value_and_what_follows_two_dashes_are_no_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steps=3").touch()
    (tmp_path / "seed").touch()
    words = ["steps=3", "seed=0.5", "--negative-prompt", "size=9", "-o", "size=9", "--", "size=9"]
    assert named_values_as_options(words, COMMANDS["generate"].params) == words
    assert named_values_as_options(["size=9"], COMMANDS["generate"].params) == ["--size", "9"]


@pytest.mark.parametrize("name", TrainConfig.__dataclass_fields__)
def test_every_setting_of_train_may_be_written_as_an_option(name):
    flag = TrainConfig.__dataclass_fields__[name].type in (bool, bool | None)
    dashed, params = f"--{name.replace('_', '-')}", COMMANDS["train"].params
    if name == "overwrite":
        assert options_as_named_values(["--overwrite"], params) == ["--overwrite"]
    elif flag:
        assert options_as_named_values([dashed], params) == [f"{name}=true"]
        assert options_as_named_values([f"--no-{name.replace('_', '-')}"], params) == [f"{name}=false"]
    else:
        for words in ([dashed, "x=y"], [f"{dashed}=x=y"], [f"--{name}", "x=y"]):
            assert options_as_named_values(["r.toml", *words], params) == ["r.toml", f"{name}=x=y"]
    assert options_as_named_values([f"{name}=1"], params) == [f"{name}=1"]


def test_both_spellings_train_to_the_same_bytes(studio, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, base = studio / "dog.png", pico.folder()
    settings = [f"image={image}", f"base={base}", "steps=1", "learning_rate=1e-3", "output=a.safetensors"]
    options = ["--image", image, f"--base={base}", "--steps", 1, "--learning-rate", "1e-3", "-o", "b.safetensors"]
    for words in (settings, options):
        code, _, err = run(capsys, "train", *words)
        assert code == 0, err
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_both_spellings_draw_the_same_image(studio, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dog, base = studio / "dog.safetensors", pico.folder()
    for words in (["--base", base, "--steps", 1, "-o", "a.png"], [f"base={base}", "steps=1", "output=b.png"]):
        code, _, err = run(capsys, "generate", "a <c>", dog, *words)
        assert code == 0, err
    from PIL import Image

    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()


@pytest.mark.parametrize("old, new", OLD_VERBS.items(), ids=" ".join)
def test_an_old_verb_works_hidden_and_says_its_new_name_in_one_line(old, new, capsys):
    code, out, err = run(capsys, *old, "--help")
    now = run(capsys, new, "--help")
    assert (code, out) == now[:2] == (0, out) and now[2] == ""
    assert err == f"warning: qrlora {' '.join(old)} is now qrlora {new}; the old name goes with 0.3\n"
    listed = run(capsys, "--help")[1]
    assert f" {new} " in listed and f" {old[0]} " not in listed


def test_help_texts_list_what_is_in_the_tables(capsys):
    """Every method, rule with its parameters, preset and way to fuse, by adding it to its table."""

    def words_of(verb):
        return set(
            re.findall(r"[\w-]+(?:=[\d.]*\d)?", re.sub(r"\s*│\s*", " ", run(capsys, *verb.split(), "--help")[1]))
        )

    assert set(METHODS) <= words_of("demo") & words_of("estimate")
    assert {*RULES, "density=0.2", "drop=0.9", "seed=0"} <= words_of("merge")
    assert {name for layout in LAYOUTS.values() for name in layout.targets} <= words_of("estimate")
    assert set(FUSIONS) <= words_of("compare")


def test_one_base_is_the_default_of_every_verb_that_needs_one():
    from qrlora.config import SampleConfig
    from qrlora.reproduction.request import ReproductionRequest

    defaults = {
        verb: p.default for verb, c in COMMANDS.items() for p in c.params if p.name == "base" and p.default is not None
    }
    assert {x for x in defaults.values() if x} == {TrainConfig.base} == {SampleConfig.base}
    assert {"demo", "compare"} <= defaults.keys() and ReproductionRequest.__dataclass_fields__["base"].default in (
        "",
        TrainConfig.base,
    )


def test_a_verb_file_is_imported_without_what_it_works_with():
    """The functions of these files are light: heavy packages are imported when one runs."""
    for module in (generate, merge, train):
        assert not {"torch", "sampling", "training", "merging", "plots"} & set(vars(module))


OPENING = {
    "train": ["image=PNG", "base=BASE", "steps=1", "output=DIR/new.safetensors"],
    "generate": ["a <c>", "DOG", "-o", "DIR/new.png"],
    "grid": ["DOG", "CAT", "-o", "DIR/new.png"],
    "decompose": ["DOG", "CAT", "--things", "cat,tree", "--styles", "neon,sketch", "-o", "DIR/new.png"],
    "words": ["PNG", "a <c>", "--words", "cat", "--base", "BASE"],
    "project": ["DOG", "DIR/new.safetensors", "--base", "BASE"],
    "bases": ["BASE", "BASE"],
}


@pytest.mark.parametrize("verb", OPENING)
def test_a_verb_that_opens_a_base_says_so_if_that_takes_long(verb, studio, tmp_path, capsys, monkeypatch):
    """Standard error has the line while the base is being opened, and nothing where that is short."""
    monkeypatch.setattr(progress_bar, "BEGUN_AFTER", 0.0)
    initialise, bars, lines = progress_bar.Bar.__init__, [], []

    def remember(bar, *given):
        initialise(bar, *given)
        bars.append(bar)

    def opened(*given, **settings):
        bars[-1].print_line_if_due()
        lines.append(capsys.readouterr().err)
        return open_base(*given, **settings)

    monkeypatch.setattr(progress_bar.Bar, "__init__", remember)
    for place in ("families", "cli.open_for_sampling", "training.train_adapter"):
        monkeypatch.setattr(f"qrlora.{place}.open_base", opened)
    places = {"DOG": studio / "dog.safetensors", "CAT": studio / "cat.safetensors", "PNG": studio / "dog.png"}
    places |= {"BASE": pico.folder(), "DIR": tmp_path}
    words = (re.sub("|".join(places), lambda m: str(places[m[0]]), word) for word in OPENING[verb])
    code, _, err = run(capsys, verb, *words)
    assert code == 0, err
    assert lines and all(re.search(r"opening (the base model|\S+pico)", line) for line in lines), lines
