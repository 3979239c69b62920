"""Where a base goes and in which numbers: chosen, said at every start, and warned of where it would take hours."""

import json
import logging
import platform
import sys
import warnings

import pytest
import torch

import pico
from commands import run
from qrlora import devices
from qrlora.families import SlowDevice, library_messages, open_base
from qrlora.families.library_messages import log_opened_base
from qrlora.safetensors_files import Checkpoint

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize(("how", "numbers"), [({}, "float32"), ({"dtype": "bfloat16"}, "bfloat16")])
def test_every_opening_of_a_base_is_logged_with_device_and_dtype(caplog, how, numbers):
    with caplog.at_level(logging.INFO, "qrlora"):
        open_base(pico.folder(), "cpu", **how)
    assert [x.message for x in caplog.records if x.name == "qrlora"] == [f"{pico.folder()} on cpu, in {numbers}"]


def test_a_gpu_is_named_and_so_is_a_quantisation(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    with caplog.at_level(logging.INFO, "qrlora"):
        log_opened_base("a/b", [], GPU, torch.bfloat16, "int8")
    assert [x.message for x in caplog.records] == ["a/b on NVIDIA L4 (cuda:1), in int8 and bfloat16"]


def test_commands_say_device_and_dtype_on_standard_error(capsys, tmp_path):
    code, out, err = run(capsys, "generate", "a dog", "--base", pico.folder(), "-o", tmp_path / "p.png", "--steps", 1)
    assert not code and err.splitlines()[0] == f"{pico.folder()} on cpu, in float32" and "float32" not in out


@pytest.fixture
def large(tmp_path):
    """A file whose header promises 1.2 billion numbers; its bytes are a hole in the disk."""
    count = 1_200_000_000
    header = json.dumps({"a.weight": {"dtype": "F16", "shape": [30_000, 40_000], "data_offsets": [0, 2 * count]}})
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 2 * count)
    return path


@pytest.mark.parametrize(
    ("machine", "way"),
    [
        (
            {"built": None},
            "this torch is built for CPUs alone: .*pip install --force-reinstall torch --index-url https://download",
        ),
        ({"built": "13.0"}, "torch finds no GPU: with one, see to its driver"),
        ({"built": "13.0", "cuda": True}, "use device=cuda"),
        ({"built": None, "mps": True}, "use device=mps"),
    ],
)
def test_a_large_base_on_a_cpu_warns_with_the_way_to_a_gpu(monkeypatch, large, machine, way):
    monkeypatch.setattr(torch.version, "cuda", machine["built"])
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: machine.get("cuda", False))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: machine.get("mps", False))
    with pytest.warns(SlowDevice, match=f"big has 1.2 billion parameters, and a CPU takes minutes .*: {way}"):
        log_opened_base("big", [Checkpoint.of(large)], CPU, torch.float32, "")


def test_a_device_without_numbers_is_none():
    with pytest.raises(ValueError, match="no device 'meta' on this machine: use device=auto"):
        devices.choose_device("meta")


def test_neither_a_gpu_nor_a_small_base_is_warned_of(monkeypatch, large):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    log_opened_base("big", [Checkpoint.of(large)], GPU, torch.bfloat16, "")  # warnings are errors
    log_opened_base("small", map(Checkpoint.of, (pico.folder() / "unet").glob("*.safetensors")), CPU, torch.float32, "")


def test_a_warning_is_one_line_of_a_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(library_messages, "SLOW_ON_CPU", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = run(capsys, "generate", "a dog", "--base", pico.folder(), "-o", tmp_path / "p.png", "--steps", 1)
    assert not code and sum(line.startswith("warning: ") and "billion" in line for line in err.splitlines()) == 1


@pytest.mark.parametrize(
    ("system", "release", "pages_to_host_memory"),
    [
        ("win32", "11", True),
        ("linux", "5.15.153.1-microsoft-standard-WSL2", True),
        ("linux", "4.4.0-19041-Microsoft", True),
        ("linux", "6.8.0-45-generic", False),
        ("darwin", "24.1.0", False),
    ],
)
def test_only_windows_and_wsl_page_gpu_memory_to_the_host(monkeypatch, system, release, pages_to_host_memory):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert devices.pages_to_host_memory(GPU) == pages_to_host_memory and not devices.pages_to_host_memory(CPU)
