"""The command line as people type it: misplaced words get the command that does it, and what is printed can be used."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from rich.console import Console

import pico
from commands import run
from qrlora.cli import console

MEANT = {  # what is typed after `qrlora`, the command that the one line must hold
    "a picture alone": ("train cat.jpg", ["train", "image=cat.jpg", "output=cat.safetensors"]),
    "a picture and settings": ("train cat.jpg steps=9", ["train", "image=cat.jpg", "output=cat.safetensors"]),
    "a picture's name with a space": ("train 'image=my' 'dog.png'", ["train", "image=my dog.png"]),
    "a picture in place of a verb": ("cat.jpg", ["train", "image=cat.jpg", "output=cat.safetensors"]),
    "an adapter in place of a verb": ("DOG", ["inspect", "DOG"]),
    "a demo of a picture": (
        "demo cat.jpg",
        ["demo", "--content", "cat.jpg", "--style", "PAINTING.jpg", "--style-shows", "cat"],
    ),
    "a demo of two": ("demo a.jpg b.png", ["demo", "--content", "a.jpg", "--style", "b.png", "--style-shows", "cat"]),
    "the file before the prompt": ('generate DOG "a <c>"', ["generate", "a <c>", "DOG"]),
    "a file and no prompt": ("generate DOG", ["generate", "a <c>", "DOG"]),
    "a strength and then the prompt": ('generate DOG=0.5 CAT "a b"', ["generate", "a b", "DOG=0.5", "CAT"]),
    "the prompt twice": ('generate x "a <c>" DOG', ["generate", "a <c>", "DOG"]),
    "the prompt without quotes": ("generate a dog DOG", ["generate", "a dog", "DOG"]),
    "a grid's prompt first": ('grid "a <c>" DOG CAT', ["grid", "DOG", "CAT", "--prompt", "a <c>"]),
    "a picture for an adapter": ("inspect PNG", ["train", "image=PNG", "output=dog.safetensors"]),
    "a picture to merge": ("merge DOG PNG", ["train", "image=PNG", "output=dog.safetensors"]),
    "a picture to draw with": ('generate "a <c>" PNG', ["train", "image=PNG", "output=dog.safetensors"]),
    "a picture to check": ("check PNG", ["train", "image=PNG", "output=dog.safetensors"]),
    "a study alone": ("bench", ["compare", "--methods", "qr,lora"]),
    "a study of methods": ("compare qr pissa", ["compare", "--methods", "qr,pissa"]),
    "a study of a base": ("bench tiny-sd3", ["compare", "--base", "tiny-sd3"]),
    "a study of the paper": ("compare table4", ["reproduce", "table4"]),
}


def put(word, studio):
    """A word with DOG, CAT and PNG as paths."""
    places = {"DOG": "dog.safetensors", "CAT": "cat.safetensors", "PNG": "dog.png"}
    return re.sub("DOG|CAT|PNG", lambda m: str(studio / places[m[0]]), word)


@pytest.mark.parametrize("typed, meant", MEANT.values(), ids=MEANT.keys())
def test_words_in_the_wrong_place_get_the_command_that_does_it(typed, meant, studio, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my dog.png").write_bytes((studio / "dog.png").read_bytes())
    code, out, err = run(capsys, *(put(word, studio) for word in shlex.split(typed)))
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: ") and out == "", err
    assert shlex.join(["qrlora", *(put(word, studio) for word in meant)]) in err
    assert [path.name for path in tmp_path.iterdir()] == ["my dog.png"]


SAID = {  # what is typed, what the one line must say
    "a value apart": ("train image = cat.jpg", "image has no value"),
    "a value with spaces": ('train image=a.png "prompt=a" dog', "'prompt=a dog'"),
    "a setting by another name": ("train --lr 1e-3", "learning_rate=1e-3"),
    "a slip in an option": ("train --step=800", "steps=800"),
    "an option without its value": ("train --steps", "'--steps' requires an argument"),
    "a strength apart": ('generate "a <c>" DOG 0.8', "DOG=0.8"),
    "a strength as elsewhere": ("merge DOG:0.8 CAT", "DOG=0.8"),
    "a rule's parameter alone": ("merge DOG CAT density=0.3", "--set density=0.3"),
    "a flag that is neither": ("merge DOG CAT overwrite=maybe", "overwrite must be true or false"),
    "a merge's output without its option": ("merge DOG CAT both.safetensors", "-o both.safetensors"),
    "half a grid": ("grid DOG", "two adapters"),
    "a family": ("estimate flux", "did you mean flux-dev or flux-schnell or flux-krea"),
    "another family": ("estimate SD3", "did you mean sd3-medium or sd3.5-medium or sd3.5-large?"),
    "a slip in a base": ("estimate flux-deb", "did you mean flux-dev"),
    "a base by its family": ("train image=PNG base=sdxl", "'stabilityai/stable-diffusion-xl-base-1.0'"),
    "a base by its short name": ("train image=PNG base=flux-dev", "did you mean 'black-forest-labs/FLUX.1-dev'?"),
    "no argument": ("convert DOG", "Example: qrlora convert lora.safetensors"),
    "one too many": ("doctor all", "Example: qrlora doctor"),
    "no result": ("reproduce tabel4", "did you mean 'table4'?"),
}


@pytest.mark.parametrize("typed, said", SAID.values(), ids=SAID.keys())
def test_a_slip_is_answered_with_what_helps(typed, said, studio, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *(put(word, studio) for word in shlex.split(typed)))
    assert code == 2 and err.count("\n") == 1 and put(said, studio) in err
    assert not list(tmp_path.iterdir())


def test_help_is_a_verb_too(capsys):
    for words in (["help"], ["help", "train"], ["help", "bench", "fusion"]):
        code, out, _ = run(capsys, *words)
        assert code == 0 and out == run(capsys, *words[1:], "--help")[1]


def test_a_recipe_whose_name_has_an_equals_sign_or_capitals_is_a_recipe(studio, tmp_path, capsys):
    for name in ("rate=1e-4.toml", "RUN.TOML"):
        (tmp_path / name).write_text(f'image = "{studio / "dog.png"}"\nrnk = 1\n')
        code, _, err = run(capsys, "train", tmp_path / name)
        assert code == 2 and "no setting 'rnk'; did you mean 'rank'?" in err


AWKWARD = ("a dog's $HOME", "größe 犬", 'with "quotes"', "semi;colon & more", "-dash", "star*", "back\\slash")


@pytest.mark.parametrize("name", AWKWARD)
def test_a_printed_command_can_be_pasted(name, studio, tmp_path, capsys, monkeypatch):
    """What `train` and `check` print is, to a shell, the words that are meant."""
    monkeypatch.chdir(tmp_path)
    prompt = f"a <c>, {name}"
    words = [f"image={studio / 'dog.png'}", f"base={pico.folder()}", "steps=1", f"prompt={prompt}"]
    code, out, err = run(capsys, "train", *words, f"output=./{name}.safetensors")
    assert code == 0, err
    line = out.splitlines()[-1].partition(": ")[2]
    shell = subprocess.run(["sh", "-c", f"qrlora() {{ printf '%s\\n' \"$@\"; }}; {line}"], capture_output=True)
    verb, said, file = shell.stdout.decode().splitlines()
    assert (verb, said) == ("generate", prompt)
    assert (tmp_path / file).is_file() and not file.startswith("-")


NARROW = {
    "inspect": "inspect DOG",
    "every layer": "inspect DOG --layers",
    "two": "inspect DOG CAT --plot alike.png --overwrite",
    "two, every layer": "inspect DOG CAT --layers --plot alike.png --overwrite",
    "check": "check NAMED",
    "bases": "bases",
    "settings": "train --settings",
    "estimate": "estimate BASE --run count",
}


@pytest.mark.parametrize("typed", NARROW.values(), ids=NARROW.keys())
def test_tables_read_at_80_columns(typed, studio, tmp_path, capsys, monkeypatch):
    """No line of a table is wider, no number is broken, and names break at their dots alone."""
    from qrlora import files

    monkeypatch.chdir(tmp_path)
    files.save(files.load(studio / "dog.safetensors"), "named.safetensors", keys="diffusers")
    typed = typed.replace("NAMED", "named.safetensors").replace("BASE", str(pico.folder()))
    wide, narrow = [], []
    for width, into in ((1000, wide), (80, narrow)):
        monkeypatch.setattr(console, "out", Console(highlight=False, soft_wrap=True, width=width))
        code, out, err = run(capsys, *(put(word, studio) for word in shlex.split(typed)))
        assert code in (0, 1), err
        into += out.splitlines()
    tables = [line for line in narrow if line.startswith(" ") or "───" in line]
    assert max(map(len, tables)) <= 80
    whole = {word for line in wide for word in line.split()}
    for word in (word for line in tables for word in line.split()):
        assert word.strip("─") == "" or any(is_piece(word, other) for other in whole), word


def is_piece(piece, word):
    """Whether a piece of a word begins and ends where names may be broken."""
    start = word.find(piece)
    return start >= 0 and (start == 0 or word[start - 1] in "._/,-") and (word.endswith(piece) or piece[-1] in "._/,-")


@pytest.mark.processes
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_standard_output_of_any_encoding_ends_no_command(encoding, studio, tmp_path):
    """What it cannot spell is escaped; the work is done and the exit code is 0."""
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    source, output = studio / "dog.safetensors", tmp_path / "größe → 犬.safetensors"
    for words in (["convert", source, output], ["inspect", output], ["check", output, "--for", "kohya"]):
        command = [sys.executable, "-m", "qrlora", *map(str, words)]
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        shown = done.stdout.decode(encoding)
        assert ("犬" if encoding == "utf-8" else "\\u72ac") in shown


def learnt(folder, name, *settings):
    """An adapter of a pico base, learnt in one step."""
    from qrlora.cli import main

    output = folder / f"{name}.safetensors"
    common = [f"base={pico.folder()}", "steps=1", "rank=4", f"output={output}"]
    with pytest.raises(SystemExit) as end:
        main(["train", *common, *settings])
    assert not end.value.code
    return output


def test_adapters_that_do_not_go_together_are_warned_of(studio, tmp_path, capsys):
    """Two contents, one trigger for two, and content and style in each other's place; one content and one style are
    what a merge is for."""
    dog, ink = studio / "dog.safetensors", studio / "cat.safetensors"
    other = learnt(tmp_path, "other", f"image={studio / 'cat.png'}")
    named = learnt(tmp_path, "named", f"image={studio / 'cat.png'}", "trigger=sks")
    both = tmp_path / "both.safetensors"

    def warned(*words):
        code, _, err = run(capsys, *words)
        assert code == 0, err
        return err.count("warning: "), err

    assert warned("merge", dog, ink, "-o", both)[0] == 0
    count, err = warned("merge", dog, other, "-o", tmp_path / "a.safetensors")
    assert count == 2 and "2 content adapters at once" in err and "'<c>' is the trigger word of 2 adapters" in err
    count, err = warned("merge", both, named, "-o", tmp_path / "b.safetensors")
    assert count == 1 and "2 content adapters at once" in err
    assert warned("merge", dog, dog, "-o", tmp_path / "c.safetensors")[0] == 0
    draw = ["--base", pico.folder(), "--steps", 1]
    assert warned("generate", "a <c>", dog, f"{other}=0", *draw, "-o", tmp_path / "a.png")[0] == 0
    assert "2 content adapters" in warned("generate", "a <c>", dog, other, *draw, "-o", tmp_path / "b.png")[1]
    strengths = ["--content-strengths", "1", "--style-strengths", "1"]
    assert warned("grid", dog, ink, *draw, *strengths, "-o", tmp_path / "c.png")[0] == 0
    count, err = warned("grid", ink, dog, *draw, *strengths, "-o", tmp_path / "d.png")
    assert count == 1 and "in the content's place is a style adapter" in err


def test_adapters_on_other_layers_do_not_interfere_and_that_is_no_mistake(studio, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = learnt(tmp_path, "words", f"image={studio / 'dog.png'}", "targets=attn2.to_k")
    time = learnt(tmp_path, "time", f"image={studio / 'dog.png'}", "targets=attn1.to_q")
    code, out, err = run(capsys, "inspect", words, time)
    assert code == 0 and "no shared layer, nothing interferes" in out and err == ""
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def test_text_encoders_are_left_out_wherever_an_adapter_is_read(studio, tmp_path, capsys, monkeypatch):
    import torch
    from safetensors.torch import load_file, save_file

    monkeypatch.chdir(tmp_path)
    whole = studio / "dog.safetensors"
    told = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 8)}
    told["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.ones(8, 2)
    save_file({**load_file(whole), **told}, "fat.safetensors")
    draw = ["--base", pico.folder(), "--steps", "1"]
    for words in (
        ["generate", "a <c>", "fat.safetensors", *draw],
        ["grid", "fat.safetensors", studio / "cat.safetensors", *draw, "--content-strengths", "1"],
        ["inspect", "fat.safetensors"],
        ["inspect", "fat.safetensors", whole],
        ["merge", "fat.safetensors", "--rule", "stack"],
    ):
        code, _, err = run(capsys, *words)
        assert code == 2 and "leave them out with --skip-text-encoders" in err
        code, out, err = run(capsys, *words, "--skip-text-encoders")
        assert code == 0 and "2 keys of text encoders left out" in out, err


def test_a_wrong_base_is_named_and_not_a_layer(studio, tmp_path, capsys):
    """For every verb that opens one; one of the same kind with other weights is a warning where one draws."""
    import torch

    from qrlora import files

    dog, cat, output = studio / "dog.safetensors", studio / "cat.safetensors", tmp_path / "out"
    for family in ("sd3", "flux"):
        for words in (
            ["generate", "a <c>", dog, "-o", f"{output}.png"],
            ["grid", dog, cat, "-o", f"{output}.png"],
            ["decompose", dog, cat, "-o", f"{output}.png"],
            ["project", dog, f"{output}.safetensors"],
        ):
            code, _, err = run(capsys, *words, "--base", pico.folder(family))
            assert code == 2 and re.search(
                rf"another base, .*pico-sdxl \(sdxl\), not to .*pico-{family} \({family}\)", err
            )
            assert "attn" not in err
    adapter = files.load(dog)
    told = {layer: 2 * value for layer, value in adapter.header.fingerprint.items()}
    header = type(adapter.header)(**{**adapter.header.__dict__, "fingerprint": told, "base": "finetune"})
    files.save(type(adapter)(adapter.layers, header), tmp_path / "tuned.safetensors")
    words = ["a <c>", tmp_path / "tuned.safetensors", "--base", pico.folder(), "--steps", 1, "-o", f"{output}.png"]
    code, _, err = run(capsys, "generate", *words)
    assert code == 0 and "warning: the content adapter was trained on finetune (sdxl), whose weights differ" in err
    assert torch.is_tensor(adapter.dense(next(iter(adapter.layers))))


def test_a_prompt_without_its_trigger_is_drawn_where_one_asks_for_it(studio, tmp_path, capsys):
    dog, cat, draw = studio / "dog.safetensors", studio / "cat.safetensors", ["--base", pico.folder(), "--steps", 1]
    strengths = ["--content-strengths", "1", "--style-strengths", "1"]
    for words in (["generate", "a dog", dog, *draw], ["grid", dog, cat, "--prompt", "a dog", *draw, *strengths]):
        output = tmp_path / f"{words[0]}.png"
        code, _, err = run(capsys, *words, "-o", output)
        assert code == 2 and "lacks '<c>'" in err and "--any-prompt" in err and not output.exists()
        code, _, err = run(capsys, *words, "-o", output, "--any-prompt")
        assert code == 0 and "warning: the prompt 'a dog' lacks '<c>'" in err and output.exists()


def test_a_prompt_may_be_longer_than_any_file_name(studio, tmp_path, capsys):
    """Whether a word is a file is asked of every one; a system has no names of thousands of letters."""
    prompt, output = f"{'a very long story ' * 500}<c>", tmp_path / "x.png"
    drawing = ["--base", pico.folder(), "--steps", 1, "--size", 16, "-o", output]
    code, _, err = run(capsys, "generate", prompt, studio / "dog.safetensors", *drawing)
    assert code == 0 and output.exists(), err[-300:]
    code, _, err = run(capsys, "train", f"base={pico.folder()}", f"prompt={prompt}", "image=none.png", "steps=1")
    assert code == 2 and "none.png" in err and "too long" not in err, err[-300:]


PROGRAM = """
import sys, qrlora
config = qrlora.TrainConfig(base=sys.argv[1], image=sys.argv[2], output=sys.argv[3], steps=5)
for told in ({}, {"progress": False}, {"on_stage": lambda what, share: None}, {"progress": True}):
    print("told", *told, file=sys.stderr, flush=True)
    qrlora.train(__import__("dataclasses").replace(config, seed=config.seed + 1, overwrite=True), **told)
"""


@pytest.mark.processes
def test_training_in_python_shows_a_bar_where_somebody_sees_it(studio, tmp_path):
    """In a terminal unless told not to, or the caller shows where it is himself."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    command = [sys.executable, "-c", PROGRAM, pico.folder("flux"), studio / "dog.png", tmp_path / "a.safetensors"]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    child = subprocess.Popen([str(x) for x in command], stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    shown = b""
    with open(ours, "rb", buffering=0) as terminal:
        while child.poll() is None or not shown:
            try:
                shown += terminal.read(65536)
            except OSError:  # the other end is closed
                break
    assert child.wait() == 0, shown
    bare, untold, staged, told = re.split(r"told ?\w*\r?\n", shown.decode())[1:]
    assert "5/5" in bare and "loss=" in bare and "opening the base model" in bare
    assert "5/5" not in untold and "5/5" not in staged and "5/5" in told


def test_training_in_python_is_silent_in_a_pipe_unless_told_otherwise(studio, tmp_path, capsys):
    from qrlora import TrainConfig, train

    for told, shows in (({}, False), ({"progress": True}, True)):
        output = tmp_path / f"{shows}.safetensors"
        train(TrainConfig(base=str(pico.folder()), image=studio / "dog.png", output=output, steps=5), **told)
        assert ("5/5" in capsys.readouterr().err) == shows


def test_a_notebook_is_seen_though_it_is_no_terminal(monkeypatch):
    import types

    from qrlora.training import progress_bar

    def shell(config):
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: config))

    shell(types.SimpleNamespace(config={"IPKernelApp": {}}))
    assert progress_bar.is_visible()
    for other in (None, types.SimpleNamespace(config={"TerminalIPythonApp": {}})):
        shell(other)
        assert progress_bar.is_visible() == sys.stderr.isatty()


@pytest.mark.processes
def test_ctrl_c_while_the_commands_are_imported_is_quiet(tmp_path):
    """At whatever import of ours it comes: one word, 130, no trace."""
    program = """
import sys, signal, os, builtins
real, wanted = builtins.__import__, sys.argv[1]
def once(name, *told, **named):
    if name.split(".")[0] == wanted and not done:
        done.append(name)
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *told, **named)
done, builtins.__import__ = [], once
sys.argv = ["qrlora", "train", f"image={sys.argv[2]}", "base=tiny-sdxl"]
from qrlora.__main__ import main
main()
"""
    picture = tmp_path / "a.png"
    from PIL import Image

    Image.effect_noise((20, 20), 60).save(picture)
    for module in ("typer", "rich", "torch", "diffusers"):
        done = subprocess.run(
            [sys.executable, "-c", program, module, picture], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode in (130, -2) and done.stderr.strip().splitlines()[-1] == "stopped", (module, done.stderr)


def test_two_files_of_unlike_bases_are_told_by_the_bases_names(studio, tmp_path, capsys):
    """Of merge and inspect, whatever layer they stumble on first."""
    import torch

    from qrlora import files
    from qrlora.adapter import Adapter, Header, Pair

    adapter = files.load(studio / "dog.safetensors")
    wide = {layer: Pair(torch.ones(4, 5), torch.ones(7, 4)) for layer in adapter.layers}
    header = Header(family="sdxl", component="unet", base="other-base", method="qr", rank=4)
    files.save(Adapter(wide, header), tmp_path / "wide.safetensors")
    for words in (["merge", "-o", tmp_path / "a.safetensors"], ["inspect", "--plot", tmp_path / "a.png"]):
        code, _, err = run(capsys, *words, studio / "dog.safetensors", tmp_path / "wide.safetensors")
        assert code == 2 and re.search("error: the adapters' base models differ, .*pico-sdxl and other-base", err), err


def test_a_preview_that_does_not_call_what_is_learnt_is_warned_of(studio, tmp_path):
    from qrlora import TrainConfig, train

    told = dict(image=studio / "dog.png", base=str(pico.folder()), steps=1, preview_every=1)
    config = TrainConfig(**told, output=tmp_path / "a.safetensors", preview_prompt="a <c> in a car")
    train(config, on_preview=lambda step, picture: None)  # any warning is an error here
    config = TrainConfig(**told, output=tmp_path / "b.safetensors", preview_prompt="a dog")
    with pytest.warns(UserWarning, match="preview_prompt='a dog' lacks the trigger word '<c>'"):
        train(config, on_preview=lambda step, picture: None)
