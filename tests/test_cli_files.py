"""convert, check and project do what their help says."""

import gc
import re
import shutil
import subprocess
import sys

import pytest
import torch

import pico
from commands import run
from loras import assert_same, random_adapter
from qrlora import files
from qrlora.adapter import Adapter, Header
from qrlora.cli.output_images import sampling_footer
from qrlora.comparison.crossed_settings import CrossedSettings
from qrlora.config import SampleConfig
from qrlora.families import open_base
from qrlora.safetensors_files import read_safetensors, write_safetensors

TEXT = {f"lora_te1_text_model_encoder_layers_{k}_mlp_fc1.lora_down.weight": torch.ones(2, 8) for k in range(4)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An SDXL LoRA in diffusers' names, one with a text encoder, and a FLUX.1 LoRA."""
    place = tmp_path_factory.mktemp("loras")
    sdxl, flux = (random_adapter(pico.BASES[family](), family) for family in ("sdxl", "flux"))
    files.save(sdxl, place / "sdxl.safetensors", keys="diffusers")
    files.save(flux, place / "flux.safetensors")
    files.save(sdxl, place / "kohya.safetensors")
    write_safetensors(place / "text.safetensors", {**read_safetensors(place / "kohya.safetensors")[0], **TEXT}, {})
    return place


@pytest.mark.parametrize("to", [None, "kohya", "diffusers"])
@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_converting_changes_names_and_nothing_else(folder, tmp_path, capsys, name, to):
    before, output = files.load(folder / f"{name}.safetensors"), tmp_path / "x.safetensors"
    code, out, err = run(capsys, "convert", folder / f"{name}.safetensors", output, *(["--keys", to] if to else []))
    assert code == 0, err
    assert f"{len(before.layers)} layers, rank 2, " in out and (to or "full") in out
    assert_same(before, files.load(output))
    assert any(key.startswith("lora_unet_") for key in read_safetensors(output)[0]) == (
        to == "kohya" or (name, to) == ("sdxl", None)
    )


def test_converting_to_compact_and_back_is_exact(studio, tmp_path, capsys):
    compact, full = tmp_path / "compact.safetensors", tmp_path / "full.safetensors"
    assert run(capsys, "convert", studio / "dog.safetensors", compact, "--content", "compact")[0] == 0
    assert run(capsys, "convert", compact, full)[0] == 0
    assert compact.stat().st_size < 0.8 * full.stat().st_size  # small matrices, long names
    assert_same(files.load(studio / "dog.safetensors"), files.load(full))
    assert run(capsys, "convert", full, compact, "--dtype", "bfloat16", "--overwrite")[0] == 0
    assert {x.dtype for x in read_safetensors(compact)[0].values()} == {torch.bfloat16}


@pytest.mark.parametrize("to, option", [("compact", "content"), ("full", "content"), ("diffusers", "keys")])
def test_the_old_option_to_says_which_of_content_and_keys_it_is_now(studio, tmp_path, capsys, to, option):
    """It writes what the new option writes, and stops where that says something else."""
    dog, old, new = studio / "dog.safetensors", tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    code, _, err = run(capsys, "convert", dog, old, "--to", to)
    assert code == 0 and f"--to {to} is now --{option} {to}; the old name goes with 0.3" in err
    assert run(capsys, "convert", dog, new, f"--{option}", to)[0] == 0
    assert new.read_bytes() == old.read_bytes()
    other = {"content": "compact", "keys": "kohya"}[option]
    code, _, err = run(capsys, "convert", dog, tmp_path / "x.safetensors", "--to", to, f"--{option}", other)
    assert (code == 2 and "leave --to out" in err) if other != to else code == 0


def test_content_and_keys_are_chosen_apart(studio, tmp_path, capsys):
    output = tmp_path / "x.safetensors"
    words = ["--content", "compact", "--keys", "diffusers"]
    code, _, err = run(capsys, "convert", studio / "dog.safetensors", output, *words)
    merged = run(capsys, "merge", studio / "dog.safetensors", "-o", tmp_path / "m.safetensors", *words)
    assert (code, err.replace("convert", "merge")) == (merged[0], merged[2])


def test_text_encoders_are_left_out_only_when_asked_and_counted(folder, tmp_path, capsys):
    words = ["convert", folder / "text.safetensors", tmp_path / "x.safetensors"]
    code, _, err = run(capsys, *words)
    assert code == 2 and "4 of" in err and "--skip-text-encoders" in err and not (tmp_path / "x.safetensors").exists()
    code, out, _ = run(capsys, *words, "--skip-text-encoders")
    assert code == 0 and "4 keys of text encoders left out" in out
    words = ["merge", folder / "text.safetensors", folder / "kohya.safetensors", "--rule", "stack"]
    code, out, _ = run(capsys, *words, "--skip-text-encoders", "-o", tmp_path / "m.safetensors")
    assert code == 0 and "4 keys of text encoders left out" in out


def test_check_counts_for_each_tool_and_names_a_remedy_that_works(folder, tmp_path, capsys):
    """The exit code tells a script; the remedy, run as printed, makes the next check pass."""
    path = folder / "sdxl.safetensors"
    code, out, err = run(capsys, "check", path, "--for", "comfyui")
    assert code == 1, err
    assert re.search(r"comfyui +[1-9]\d* +[1-9]\d* +0 +0 *$", out, re.MULTILINE) and "under kohya's names alone" in out
    remedy = re.search(r"qrlora (convert \S+ )(\S+)((?: --keys \w+)?)", out)
    assert remedy is not None and remedy[2].endswith("sdxl-converted.safetensors")
    words = [*remedy[1].split(), tmp_path / "fixed.safetensors", *remedy[3].split()]
    assert run(capsys, *words)[0] == 0
    code, out, err = run(capsys, "check", tmp_path / "fixed.safetensors")
    assert code == 0, err
    assert all(re.search(rf"^ +{tool} +\d+ +0 +0 +0 *$", out, re.MULTILINE) for tool in ("comfyui", "a1111", "kohya"))


def test_check_says_where_there_is_no_remedy(folder, capsys):
    code, out, _ = run(capsys, "check", folder / "flux.safetensors", "--for", "a1111", "--for", "diffusers")
    assert code == 1 and "no flux models" in out and "none: no names under which it loads all" in out
    code, out, _ = run(capsys, "check", folder / "text.safetensors", "--for", "diffusers")
    assert code == 0, out


def test_check_shows_hostile_names_without_obeying_them(tmp_path, capsys):
    tensors = {"lora_unet_x.\x1b[2Jdora_scale": torch.ones(1), "unet.mid_block.a.lora_A.weight": torch.ones(1, 1)}
    write_safetensors(tmp_path / "x.safetensors", {**tensors, "unet.mid_block.a.lora_B.weight": torch.ones(1, 1)}, {})
    code, out, err = run(capsys, "check", tmp_path / "x.safetensors", "--for", "diffusers")
    assert code == 1 and "\x1b[2J" not in out + err and "\\x1b[2J" in out
    code, out, err = run(capsys, "inspect", tmp_path / "x.safetensors")
    assert code == 2 and "\x1b[2J" not in out + err


def test_projecting_says_how_much_is_kept_and_the_result_merges_with_ours(folder, studio, tmp_path, capsys):
    output = tmp_path / "ours.safetensors"
    foreign = files.load(folder / "kohya.safetensors").select(["attn1.to_q", "attn1.to_k"])
    plain = Adapter(foreign.layers, Header(component="unet", rank=2))  # another tool's, which says nothing of a base
    files.save(plain, tmp_path / "foreign.safetensors", keys="diffusers")
    words = ["project", tmp_path / "foreign.safetensors", output, "--base", pico.folder(), "--rank", 4]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    shares = [float(x) for x in re.findall(r"^ +\S+attn1\S+ +([\d.]+)%", out, re.MULTILINE)]
    assert len(shares) == len(plain.layers) and shares == sorted(shares)
    assert "lies outside the basis and is lost" in err and re.search(r"all +[\d.]+%", out)
    code, out, err = run(capsys, "merge", studio / "dog.safetensors", output, "-o", tmp_path / "m.safetensors")
    assert code == 0, err
    assert "100.00% of its squared norm kept" in out and files.load(tmp_path / "m.safetensors").rank == 4


def test_merge_takes_a_missing_last_file_for_its_output_only_where_it_was_given_no_output(folder, tmp_path, capsys):
    words = ["merge", folder / "sdxl.safetensors", tmp_path / "none.safetensors"]
    code, _, err = run(capsys, *words)
    assert code == 2 and f"to write to it: -o {tmp_path / 'none.safetensors'}" in err
    code, _, err = run(capsys, *words, "-o", tmp_path / "sum.safetensors")
    assert code == 2 and err == f"error: {tmp_path / 'none.safetensors'}: No such file or directory\n"


def test_an_adapter_that_cannot_be_read_is_refused_before_a_base_is_opened(folder, tmp_path, capsys, monkeypatch):
    """A base of several gigabytes would be opened, or fetched, for nothing."""
    monkeypatch.setattr("qrlora.cli.adapter_files.open_base_for_weights", lambda base: pytest.fail("opened"))
    code, _, err = run(capsys, "project", folder / "none", tmp_path / "x.safetensors", "--base", "owner/name")
    assert code == 2 and "No such file" in err
    for words in (["inspect"], ["check"], ["convert", tmp_path / "x.safetensors"]):
        code, _, err = run(capsys, words[0], folder, *words[1:])
        assert code == 2 and "a folder, in which is neither adapter_model.safetensors nor" in err, err


@pytest.mark.parametrize(("option", "value"), [("--rank", 0), ("--side", "left")])
def test_no_base_is_opened_for_a_basis_that_cannot_be(folder, tmp_path, capsys, monkeypatch, option, value):
    monkeypatch.setattr("qrlora.cli.adapter_files.open_base_for_weights", lambda base: pytest.fail("opened"))
    project = ["project", folder / "kohya.safetensors", tmp_path / "x.safetensors", "--base", "owner/name"]
    for words in (project, ["bases", "owner/name", "owner/other"]):
        code, _, err = run(capsys, *words, option, value)
        assert code == 2 and f"error: {option} must be" in err


def test_check_names_the_file_whose_numbers_no_tool_can_use(folder, capsys, tmp_path):
    tensors, metadata = read_safetensors(folder / "kohya.safetensors")
    path = tmp_path / "nan.safetensors"
    write_safetensors(path, {name: x * float("nan") for name, x in tensors.items()}, metadata)
    code, _, err = run(capsys, "check", path)
    assert code == 2 and err.startswith(f"error: {path}: lora_unet_") and "NaN" in err


def test_check_names_a_copy_beside_the_folder_in_which_it_is_called(folder, capsys, tmp_path, monkeypatch):
    peft = tmp_path / "dog"
    peft.mkdir()
    shutil.copy(folder / "sdxl.safetensors", peft / "adapter_model.safetensors")
    monkeypatch.chdir(peft)
    code, out, err = run(capsys, "check", ".", "--for", "comfyui")
    assert code == 1, err
    assert f"qrlora convert . {tmp_path}/dog-converted.safetensors" in " ".join(out.split())


def test_an_adapter_in_the_folder_in_which_one_is_has_that_folders_name(folder, capsys, tmp_path, monkeypatch):
    for name in ("dog", "ink"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "sdxl.safetensors", tmp_path / name / "adapter_model.safetensors")
    monkeypatch.chdir(tmp_path / "dog")
    code, out, err = run(capsys, "inspect", ".", "../ink")
    assert code == 0, err
    assert "|dog|" in out and (tmp_path / "dog" / "dog-ink-similarity.png").exists()
    drawn = SampleConfig(prompt="x", adapters=(".", "../ink"), steps=1, guidance=1.0)
    assert sampling_footer(drawn).startswith("dog + ink on ")
    for base in (".", "../dog"):
        assert CrossedSettings(root=tmp_path, base=base).folder.name == "dog-test-6x6"


def test_check_counts_the_keys_of_a_compact_file_whose_basis_is_elsewhere(studio, capsys, tmp_path, monkeypatch):
    path = tmp_path / "compact.safetensors"
    assert run(capsys, "convert", studio / "dog.safetensors", path, "--content", "compact")[0] == 0
    monkeypatch.setenv("QRLORA_CACHE", str(tmp_path / "other machine"))
    code, out, err = run(capsys, "check", path)
    assert code == 1, err
    assert re.search(r"comfyui +0 +[1-9]\d* +0 +0 *$", out, re.MULTILINE) and "the compact file's basis" in out


def test_a_projection_keeps_what_lies_in_the_leading_directions_and_no_more(folder, tmp_path, capsys):
    """In float64, from the weight's own SVD: |B A V V^T|^2 / |B A|^2, with V the r leading right singular vectors."""
    output, adapter = tmp_path / "ours.safetensors", files.load(folder / "kohya.safetensors").select(["attn1.to_q"])
    files.save(adapter, tmp_path / "x.safetensors")
    code, out, _ = run(capsys, "project", tmp_path / "x.safetensors", output, "--base", pico.folder(), "--rank", 3)
    assert code == 0
    shown = dict(re.findall(r"^ +(\S+attn1\S+) +([\d.]+)%", out, re.MULTILINE))
    weights = dict(open_base(pico.folder(), "cpu").weights("attn1.to_q"))
    for layer, pair in adapter.layers.items():
        V = torch.linalg.svd(weights[layer].double(), full_matrices=False).Vh[:3].T
        update = pair.B.double() @ pair.A.double()
        inside = update @ V @ V.T
        assert float(shown[layer]) == pytest.approx(
            float(inside.square().sum() / update.square().sum()) * 100, abs=0.01
        )
        torch.testing.assert_close(files.load(output).dense(layer).double(), inside, atol=1e-5, rtol=1e-4)


def test_dead_objects_are_collected_again_after_a_command_that_was_in_a_hurry(folder, tmp_path, capsys):
    """Also where it failed: `inspect` and `merge` run without the search for cycles."""
    for code, words in ((0, ["inspect", folder / "sdxl.safetensors"]), (2, ["merge", tmp_path / "none.safetensors"])):
        assert run(capsys, *words)[0] == code and gc.isenabled()


@pytest.mark.processes
def test_commands_on_files_load_no_model_library(folder, tmp_path):
    script = (
        "import sys, qrlora.cli\ntry:\n    qrlora.cli.main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert end.code in (None, 0, 1), end.code\n"
        "assert not {'diffusers', 'transformers', 'peft', 'accelerate', 'matplotlib'} & set(sys.modules)"
    )
    for words in (
        ["inspect", folder / "sdxl.safetensors"],
        ["check", folder / "sdxl.safetensors"],
        ["convert", folder / "sdxl.safetensors", tmp_path / "x.safetensors"],
    ):
        subprocess.run([sys.executable, "-c", script, *map(str, words)], check=True, capture_output=True)
