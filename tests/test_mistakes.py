"""Every mistake is one line with a way out and exit code 2; Ctrl-C is 130 and loses nothing."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import pico
from commands import run
from qrlora import cli, files
from qrlora.adapter import Adapter, Header, Pair


def bad_files(folder, dog):
    """Files that are no adapters, each in its own way."""
    whole = dog.read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "pickled.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (folder / "weights.ckpt").write_bytes(pickle.dumps({"a": 1}))
    (folder / "picture.png").write_bytes(b"\x89PNG not really")
    adapter = files.load(dog)
    layer, pair = next(iter(adapter.layers.items()))
    from safetensors.torch import save_file

    tensors = {
        f"unet.{layer}.lora_A.weight": pair.A,
        f"unet.{layer}.lora_B.weight": torch.full_like(pair.B, float("nan")),
    }
    save_file(tensors, folder / "nan.safetensors")
    wide = {n: Pair(torch.ones(2, 5), torch.ones(5, 2)) for n in adapter.layers}
    header = Header(family="sdxl", component="unet", method="lora", rank=2)
    files.save(Adapter(wide, header), folder / "wide.safetensors")
    foreign = Header(
        **{**adapter.header.__dict__, "fingerprint": {k: 2 * v for k, v in adapter.header.fingerprint.items()}}
    )
    files.save(Adapter(adapter.layers, foreign), folder / "foreign.safetensors")


BAD = {  # the words after `qrlora`, what the one line must say
    "no such verb": (["trian"], "No such command 'trian'. Did you mean 'train'?"),
    "no such option": (["merge", "DOG", "--rul", "sum"], "No such option"),
    "no such rule": (["merge", "DOG", "--rule", "mean"], "no merging rule 'mean'; choose one of sum, stack"),
    "no such content": (["merge", "DOG", "--content", "half"], "content='half'"),
    "no such setting": (["train", "rnk=3"], "no setting 'rnk'; did you mean 'rank'?"),
    "two recipes": (["train", "a.toml", "b.toml"], "one recipe at a time, got a.toml, b.toml"),
    "no recipe": (["train", "none.toml"], "none.toml: No such file or directory"),
    "no picture": (["train"], "no training image: give image=FILE"),
    "picture missing": (["train", "image=none.png"], "none.png"),
    "not a picture": (["train", "image=DIR/picture.png"], "picture.png"),
    "no trigger": (
        ["train", "image=PNG", "prompt=a dog"],
        "the prompt 'a dog' lacks its trigger word '<c>': try 'a <c>'",
    ),
    "style unsaid": (["train", "image=PNG", "role=style"], "a style needs a caption of its image"),
    "no such method": (["train", "image=PNG", "method=qrr"], "no method 'qrr'; did you mean 'qr'?"),
    "rank too large": (["train", "image=PNG", "base=BASE", "rank=999"], "rank 999 is above"),
    "no such base": (["train", "image=PNG", "base=tiny-sdxxl"], "tiny-sdxxl"),
    "no such layers": (
        ["train", "image=PNG", "base=BASE", "targets=to_z"],
        "'to_z'; presets of targets: self, attention",
    ),
    "no such device": (["train", "image=PNG", "base=BASE", "device=tpu9"], "no device 'tpu9'"),
    "output a folder": (["train", "image=PNG", "base=BASE", "output=DIR"], "output must be a file name that ends in"),
    "adapter missing": (["merge", "none.safetensors"], "none.safetensors: No such file or directory"),
    "adapter cut": (["merge", "DIR/cut.safetensors"], "cut.safetensors: not a whole safetensors file"),
    "adapter empty": (["inspect", "DIR/empty.safetensors"], "empty.safetensors: not a whole safetensors file (0 bytes"),
    "adapter a pickle": (["inspect", "DIR/pickled.safetensors"], "a pickle can run code"),
    "adapter a ckpt": (["generate", "a <c>", "DIR/weights.ckpt"], "a pickle can run code"),
    "adapter a picture": (["inspect", "DIR/picture.png"], "picture.png"),
    "adapter with NaN": (["inspect", "DIR/nan.safetensors"], "holds NaN or infinity"),
    "adapter of another shape": (["generate", "a", "DIR/wide.safetensors", "--base", "BASE"], "another base"),
    "adapters of two bases": (["merge", "DOG", "DIR/foreign.safetensors"], "base"),
    "no such form": (
        ["convert", "DOG", "DIR/a.safetensors", "--to", "pickle"],
        "--to must be one of full, compact, kohya",
    ),
    "converted to no adapter": (["convert", "DOG", "DIR/a.pt"], "a.pt: the name must end in .safetensors"),
    "no such number": (["convert", "DOG", "DIR/a.safetensors", "--dtype", "int8"], "dtype must be one of float32"),
    "no such tool": (["check", "DOG", "--for", "fooocus"], "no rules for 'fooocus'; known tools: comfyui"),
    "checked a picture": (["check", "DIR/picture.png"], "picture.png is a picture, not an adapter"),
    "projected on no base": (["project", "DOG", "DIR/a.safetensors"], "Missing option '--base'"),
    "projected on another base": (
        ["project", "DIR/foreign.safetensors", "DIR/a.safetensors", "--base", "BASE"],
        "whose weights differ from",
    ),
    "a rank that no layer has": (
        ["project", "DOG", "DIR/a.safetensors", "--base", "BASE", "--rank", "999"],
        "rank must lie in 1..",
    ),
    "strength no number": (
        ["merge", "DOG=strong"],
        "strengths are numbers with commas between, such as 0,0.5,1; got 'strong'",
    ),
    "strength infinite": (["merge", "DOG=inf"], "strengths must be finite numbers"),
    "strength huge": (["generate", "a dog", "DOG=1e30"], "strengths must be finite numbers of at most 1000"),
    "strengths no numbers": (["grid", "DOG", "CAT", "--base", "BASE", "--style-strengths", "0;1"], "got '0;1'"),
    "three to compare": (["inspect", "DOG", "CAT", "DOG"], "inspect shows one file or compares two, got 3"),
    "prompt a picture": (
        ["generate", "PNG", "DOG"],
        "dog.png is a picture, not an adapter; train one on it: qrlora train",
    ),
    "prompt without trigger": (["generate", "a cat", "DOG", "--base", "BASE"], "lacks '<c>'"),
    "odd size": (["generate", "a <c>", "DOG", "--base", "BASE", "--size", "17"], "size must be a multiple of 8"),
    "no steps": (["generate", "a <c>", "DOG", "--base", "BASE", "--steps", "0"], "steps must be 1 or more, got 0"),
    "picture no picture": (
        ["generate", "a <c>", "DOG", "--base", "BASE", "-o", "DIR/a.xyz"],
        "a.xyz: no picture format",
    ),
}


@pytest.mark.parametrize("words, message", BAD.values(), ids=BAD.keys())
def test_a_mistake_is_one_line_with_exit_code_2_and_leaves_nothing(
    words, message, studio, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    places = {"DOG": studio / "dog.safetensors", "CAT": studio / "cat.safetensors", "PNG": studio / "dog.png"}
    places |= {"BASE": pico.folder(), "DIR": tmp_path}
    bad_files(tmp_path, places["DOG"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = run(capsys, *(re.sub("|".join(places), lambda m: str(places[m[0]]), word) for word in words))
    assert code == 2 and out == ""
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert "Traceback" not in err and err.count("error: ") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_traceback_shows_all(capsys):
    for words in (["--traceback", "inspect", "none.safetensors"], ["inspect", "none.safetensors", "--traceback"]):
        with pytest.raises(FileNotFoundError):
            cli.main(words)


def test_a_slip_of_ours_shows_its_trace(monkeypatch):
    """Only what a person can mend becomes one line; anything else must be seen whole."""
    monkeypatch.setattr(files, "load", lambda *told: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", "a.safetensors"])


@pytest.mark.processes
def test_ctrl_c_is_130_and_the_same_command_goes_on_to_the_same_bytes(studio, tmp_path):
    def command(output):
        words = [f"image={studio / 'dog.png'}", f"base={pico.folder()}", "steps=150", f"output={output}"]
        return [sys.executable, "-m", "qrlora", "train", *words]

    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    subprocess.run(command(whole), check=True, capture_output=True)
    child = subprocess.Popen(
        [*command(stopped), "save_every=5"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    state = tmp_path / "stopped.checkpoint" / "state.safetensors"
    while not state.exists() and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in err, err
    assert re.search(r"stopped after step \d+ of 150; the same command goes on", err) and not stopped.exists()
    subprocess.run(command(stopped), check=True, capture_output=True)
    assert stopped.read_bytes() == whole.read_bytes() and not state.parent.exists()


def test_a_reader_that_has_seen_enough_is_no_error(studio):
    command = [sys.executable, "-m", "qrlora", "inspect", str(studio / "dog.safetensors"), "--layers"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert "Traceback" not in done.stderr and "error" not in done.stderr
