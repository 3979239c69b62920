"""What every command does where its output cannot be written, or where something is there already."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
from PIL import Image

import pico
from commands import run

ADAPTERS = {  # verb: (words before the output, how the output is named, what opens a base)
    "merge": (["merge", "DOG", "CAT=0.5", "-o", "OUT"], None),
    "convert": (["convert", "DOG", "OUT", "--keys", "diffusers"], None),
    "project": (["project", "DOG", "OUT", "--base", "BASE", "--rank", "2"], "qrlora.families.open_base"),
}
TRAINING = {
    "train": (
        ["train", "image=PNG", "base=BASE", "device=cpu", "steps=2", "output=OUT"],
        "qrlora.training.train_adapter.open_base",
    ),
}
PICTURES = {
    "generate": (
        ["generate", "a <c>", "DOG", "--base", "BASE", "--steps", "1", "-o", "OUT"],
        "qrlora.cli.open_for_sampling.open_base",
    ),
    "generate two": (
        ["generate", "a <c>", "DOG", "--base", "BASE", "--steps", "1", "--count", "2", "--seed", "7", "-o", "OUT"],
        "qrlora.cli.open_for_sampling.open_base",
    ),
    "grid": (
        ["grid", "DOG", "CAT", "--base", "BASE", "--steps", "1", "--content-strengths", "1"]
        + ["--style-strengths", "1", "-o", "OUT"],
        "qrlora.cli.open_for_sampling.open_base",
    ),
    "decompose": (
        ["decompose", "DOG", "CAT", "--base", "BASE", "--steps", "1", "--things", "cat,tree"]
        + ["--styles", "neon,sketch", "-o", "OUT"],
        "qrlora.cli.open_for_sampling.open_base",
    ),
}
PLOTS = {
    "inspect": (["inspect", "DOG", "--plot", "OUT"], None),
    "inspect two": (["inspect", "DOG", "CAT", "--plot", "OUT"], None),
}
REPORTS = {
    "estimate": (["estimate", "BASE", "--run", "count", "--against", "", "--json", "OUT"], "qrlora.estimate.estimate"),
}
COMMANDS = {**ADAPTERS, **TRAINING, **PICTURES, **PLOTS, **REPORTS}
NAMES = dict.fromkeys([*ADAPTERS, *TRAINING], "out.safetensors") | dict.fromkeys([*PICTURES, *PLOTS], "out.png")
NAMES |= dict.fromkeys(REPORTS, "out.json")


@pytest.fixture
def command(studio, tmp_path, capsys, monkeypatch):
    """(verb, output, more words, whether a base may be opened) -> (exit code, standard output, standard error)."""

    def act(verb, output, *more, opens=True):
        words, opener = COMMANDS[verb]
        places = {"DOG": studio / "dog.safetensors", "CAT": studio / "cat.safetensors", "BASE": pico.folder()}
        places |= {"PNG": studio / "dog.png", "OUT": output}
        told = []
        for word in words:
            for name, place in places.items():
                word = word.replace(name, str(place))
            told.append(word)
        with monkeypatch.context() as patch:
            if opener and not opens:
                patch.setattr(opener, lambda *_, **__: pytest.fail("the base was opened"))
            return run(capsys, *told, *more)

    monkeypatch.chdir(tmp_path)
    return act


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusing(monkeypatch, name, number, when=lambda *_: True):
    """A function of `os` that raises an error number where `when` says so."""
    real = getattr(os, name)

    def act(*arguments, **names):
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **names)

    monkeypatch.setattr(os, name, act)


def beforehand(folder, name):
    """{situation: (output, words of the message)}."""
    (folder / "shut").mkdir()
    (folder / "shut").chmod(0o555)
    (folder / "file").write_text("no folder")
    (folder / name).mkdir()
    stem, dot, ending = name.partition(".")
    return {
        "read-only": (folder / "shut" / name, "Permission denied"),
        "below a read-only one": (folder / "shut" / "a" / "b" / name, "Permission denied"),
        "a file for a folder": (folder / "file" / name, "is no folder"),
        "a folder": (folder / name, "is a folder"),
        "a name too long while it is written": (folder / f"{stem * 79}{dot}{ending}", "too long"),
        "a name too long": (folder / f"{stem * 200}{dot}{ending}", "too long"),
        "no such ending": (folder / f"{stem}.xyz", f"{stem}.xyz"),
        "no ending": (folder / stem, stem),
    }


@pytest.mark.parametrize("verb", COMMANDS)
def test_an_output_that_cannot_be_written_is_refused_before_a_base_is_opened(
    verb, command, tmp_path, permissions_count
):
    cases = beforehand(tmp_path, NAMES[verb])
    before = sorted(tmp_path.rglob("*"))
    for situation, (output, message) in cases.items():
        if verb in REPORTS and "ending" in situation:
            continue
        code, out, err = command(verb, output, opens=False)
        line = err.strip().splitlines()[-1]
        assert code == 2 and out == "" and line.startswith("error: ") and message in line, (situation, out, err)
        assert "Traceback" not in err and sorted(tmp_path.rglob("*")) == before, situation


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_full_disk_is_said_before_a_base_is_opened(verb, command, tmp_path, monkeypatch):
    refusing(monkeypatch, "posix_fallocate", errno.ENOSPC)
    code, out, err = command(verb, tmp_path / "new" / NAMES[verb], opens=False)
    assert code == 2 and out == "" and "No space left on device; nothing was written" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["psd", "xpm", "h5", "wmf", "safetensors"])
@pytest.mark.parametrize("verb", [*PICTURES, *PLOTS])
def test_a_picture_format_that_is_only_read_is_refused_before_a_base_is_opened(verb, ending, command, tmp_path):
    code, out, err = command(verb, tmp_path / f"out.{ending}", opens=False)
    assert code == 2 and out == "" and "try out.png" in err and not list(tmp_path.iterdir())


def test_several_pictures_need_a_format_of_pictures_and_of_figures(command, tmp_path):
    for ending in ("svg", "bmp"):
        code, _, err = command("generate two", tmp_path / f"out.{ending}", opens=False)
        assert code == 2 and "try out.png" in err


@pytest.mark.parametrize("verb", COMMANDS)
def test_missing_folders_are_made_and_a_link_keeps_its_target(verb, command, tmp_path, monkeypatch):
    """Also on a file system without fsync, and without renaming over a file."""
    refusing(monkeypatch, "fsync", errno.ENOSYS)
    for name in ("replace", "rename"):
        refusing(monkeypatch, name, errno.EPERM, lambda _, target: os.path.lexists(target))
    real, link = tmp_path / "new" / "deep" / NAMES[verb], tmp_path / f"link{Path(NAMES[verb]).suffix}"
    assert command(verb, real)[0] == 0
    first = contents(tmp_path)
    assert real in first and all(path.parent == real.parent for path in first)
    link.symlink_to(real)
    real.write_bytes(b"somebody's")
    code, _, err = command(verb, link, "--overwrite")
    assert code == 0 and link.is_symlink(), err
    assert real.read_bytes() == first[real] or verb in [*PICTURES, *REPORTS]  # which say where, and how fast
    assert real.read_bytes()[:8] == first[real][:8]


@pytest.mark.parametrize("verb", COMMANDS)
def test_another_runs_file_is_replaced_only_if_asked(verb, command, tmp_path):
    """Verbs that draw number theirs; the others stop with exit code 2 and name --overwrite."""
    output = tmp_path / NAMES[verb]
    output.write_bytes(b"somebody's")
    code, out, err = command(verb, output)
    if verb in PICTURES:
        assert code == 0 and out.splitlines()[-1] == str(tmp_path / "out_2.png"), err
        with Image.open(tmp_path / "out_2.png") as picture:
            picture.load()
        singles = {f"out_2-{seed}.png" for seed in (7, 8)} if verb == "generate two" else set()
        assert {path.name for path in contents(tmp_path)} == {"out.png", "out_2.png", *singles}
    else:
        line = err.strip().splitlines()[-1]
        assert code == 2 and f"{output}: is there already: --overwrite replaces it" in line
        assert list(contents(tmp_path)) == [output]
    assert output.read_bytes() == b"somebody's"
    code, _, err = command(verb, output, "--overwrite")
    assert code == 0 and output.read_bytes() != b"somebody's", err


@pytest.mark.parametrize("verb", [*ADAPTERS, *TRAINING, *PLOTS])
def test_the_same_command_again_leaves_the_same_file(verb, command, tmp_path):
    output = tmp_path / NAMES[verb]
    assert command(verb, output)[0] == 0
    before, moment = output.read_bytes(), output.stat().st_mtime_ns
    code, out, err = command(verb, output)
    assert code == 0 and output.read_bytes() == before and output.stat().st_mtime_ns == moment, err
    assert "done before" in out or verb in PLOTS
    assert list(contents(tmp_path)) == [output]


def test_pictures_are_numbered_however_often_and_beside_those_of_a_sheet(command, tmp_path):
    (tmp_path / "out-8.png").write_bytes(b"a picture of a sheet")
    for name in ("out_2", "out_3"):
        code, out, _ = command("generate two", tmp_path / "out.png")
        assert code == 0 and out.strip() == str(tmp_path / f"{name}.png") and (tmp_path / f"{name}-8.png").exists()
    assert (tmp_path / "out-8.png").read_bytes() == b"a picture of a sheet" and not (tmp_path / "out.png").exists()


def test_the_plot_of_two_files_that_nobody_named_is_numbered_if_it_is_another(command, studio, tmp_path, capsys):
    words = ["inspect", studio / "dog.safetensors", studio / "cat.safetensors"]
    name = tmp_path / "dog-cat-similarity.png"
    for _ in range(2):
        code, out, _ = run(capsys, *words)
        assert code == 0 and f"plot: {name.name}" in out and list(contents(tmp_path)) == [name]
    name.write_bytes(b"of other files")
    code, out, _ = run(capsys, *words)
    assert code == 0 and "plot: dog-cat-similarity_2.png" in out and name.read_bytes() == b"of other files"


@pytest.mark.parametrize("link", [False, True], ids=["itself", "a link to it"])
@pytest.mark.parametrize("verb", ADAPTERS)
def test_an_output_that_is_an_input_is_refused_or_whole(verb, link, command, studio, tmp_path, capsys):
    """Never half: with --overwrite it is the very file that another output gets."""
    assert command(verb, tmp_path / "other.safetensors")[0] == 0
    source = tmp_path / "dog.safetensors"
    source.write_bytes((studio / "dog.safetensors").read_bytes())
    output = source
    if link:
        output = tmp_path / "link.safetensors"
        output.symlink_to(source)
    words = [str(source) if word == "DOG" else word for word in COMMANDS[verb][0]]
    words = [word.replace("CAT", str(studio / "cat.safetensors")) for word in words]
    words = [word.replace("OUT", str(output)).replace("BASE", str(pico.folder())) for word in words]
    code, _, err = run(capsys, *words)
    assert code == 2 and "--overwrite" in err and source.read_bytes() == (studio / "dog.safetensors").read_bytes()
    code, _, err = run(capsys, *words, "--overwrite")
    assert code == 0 and source.read_bytes() == (tmp_path / "other.safetensors").read_bytes(), err
    assert output.is_symlink() == link


def full_at_the_end(monkeypatch, folder):
    """What is written below a folder cannot be synced: the disk has filled meanwhile."""
    refusing(
        monkeypatch, "fsync", errno.ENOSPC, lambda file: os.readlink(f"/proc/self/fd/{file}").startswith(str(folder))
    )


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux tells which file a descriptor is")
@pytest.mark.parametrize("verb", PICTURES)
def test_pictures_that_cannot_be_written_at_the_end_are_kept_elsewhere(verb, command, tmp_path, monkeypatch):
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    (elsewhere / "out.png").write_bytes(b"kept before")
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    full_at_the_end(monkeypatch, tmp_path / "out")
    code, out, err = command(verb, tmp_path / "out" / "out.png")
    assert code == 2 and out == "" and f"what was made is kept as {elsewhere / 'out_2.png'}" in err
    with Image.open(elsewhere / "out_2.png") as picture:
        picture.load()
    assert (elsewhere / "out.png").read_bytes() == b"kept before" and not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux tells which file a descriptor is")
@pytest.mark.parametrize("verb", [*ADAPTERS, *PLOTS, *REPORTS])
def test_a_disk_that_fills_meanwhile_leaves_nothing_half(verb, command, tmp_path, monkeypatch):
    full_at_the_end(monkeypatch, tmp_path)
    code, _, err = command(verb, tmp_path / "new" / NAMES[verb])
    assert code == 2 and "No space left on device; nothing was written" in err and not list(tmp_path.iterdir())


STUDIES = {  # verb: (words before the folder, a page in it, what opens the base)
    "bench": (
        ["bench", "fusion", "--base", "BASE", "-o"],
        "rank.md",
        "qrlora.comparison.fusion_comparison.open_base_once",
    ),
    "reproduce": (
        ["reproduce", "table3", "--base", "BASE", "-o"],
        "table3.md",
        "qrlora.reproduction.request.open_base_once",
    ),
}


@pytest.mark.parametrize("verb", STUDIES)
def test_a_folder_that_cannot_be_written_is_refused_before_a_base_is_opened(
    verb, tmp_path, capsys, monkeypatch, permissions_count
):
    words, page, opener = STUDIES[verb]
    words = [word.replace("BASE", str(pico.folder())) for word in words]
    monkeypatch.setattr(opener, lambda *_: pytest.fail("the base was opened"))
    (tmp_path / "shut").mkdir(mode=0o555)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "used" / page).mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / page).with_suffix(".png").write_bytes(b"somebody's")
    before = sorted(tmp_path.rglob("*"))
    cases = {"shut": "Permission denied", "file": "is no folder", "file/below": "is no folder", "used": "is a folder"}
    for folder, message in {**cases, "other": "is there already: --overwrite replaces it"}.items():
        code, out, err = run(capsys, *words, tmp_path / folder)
        assert code == 2 and out == "" and message in err.strip().splitlines()[-1], (folder, err)
    refusing(monkeypatch, "posix_fallocate", errno.ENOSPC)
    code, out, err = run(capsys, *words, tmp_path / "new")
    assert code == 2 and "No space left on device" in err and sorted(tmp_path.rglob("*")) == before


def test_a_result_of_other_settings_is_replaced_only_if_asked(tmp_path, capsys):
    """The same command makes its own anew; another result has another name."""
    words = ["reproduce", "table2", "--base", pico.folder(), "--steps", 2, "-o", tmp_path]
    for _ in range(2):
        code, _, err = run(capsys, *words)
        assert code == 0, err
    before = contents(tmp_path)
    code, _, err = run(capsys, *words, "--rank", 2)
    assert code == 2 and "--overwrite" in err and contents(tmp_path) == before
    code, _, err = run(capsys, *words, "--rank", 2, "--overwrite")
    assert code == 0 and "rank=2" in (tmp_path / "table2.md").read_text(), err
