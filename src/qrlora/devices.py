"""Device and dtype of a base: which there are, which suit, what this machine is fast at; memory given back."""

from __future__ import annotations

import ctypes
import platform
import sys

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str = "auto") -> torch.device:
    """The torch device of a name; auto takes cuda, then mps, then cpu.

    Raises: ValueError: no such device on this machine.
    """
    if device == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"no device {device!r} on this machine: use device=auto or device=cpu") from error


def number_type(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a name. auto: on a GPU with CUDA, where a base in float32 would take twice the memory and
    several times as long, bfloat16 if the GPU is fast at it, else float16 (T4, V100, RTX 20); float32 elsewhere.

    Raises: ValueError: an unknown name.
    """
    if name == "auto":
        half = torch.bfloat16 if has_fast_bfloat16(device) else torch.float16
        return half if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are several times as fast there as in float32. Older GPUs (compute capability below
    8.0) emulate them: `torch.cuda.is_bf16_supported()` says yes there, too, and knows the current GPU only."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return device.type == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def describe(device: torch.device) -> str:
    """The device as a person knows it: "NVIDIA L4 (cuda:0)", "cpu"."""
    return f"{torch.cuda.get_device_name(device)} ({device})" if device.type == "cuda" else str(device)


def way_to_a_gpu() -> str:
    """What brings a base that is on the CPU onto a GPU of this machine, in a few words."""
    if torch.backends.mps.is_available():
        return "use device=mps"
    if torch.cuda.is_available():
        return "use device=cuda"
    if torch.version.cuda or torch.version.hip:
        return "torch finds no GPU: with one, see to its driver (nvidia-smi)"
    index = "https://download.pytorch.org/whl/cu130"
    command = f"pip install --force-reinstall torch --index-url {index}"
    return f"this torch is built for CPUs alone: with an NVIDIA GPU, {command} (others: pytorch.org/get-started)"


def spills(device: torch.device) -> bool:
    """Whether a full GPU spills into the computer's memory, tens of times as slow, rather than say so: NVIDIA's driver
    does on Windows, also from within WSL."""
    return device.type == "cuda" and (sys.platform == "win32" or "microsoft" in platform.release().lower())


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that a program may still fill: what no one holds, and what torch has taken and does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def give_back() -> None:
    """Have glibc return freed memory to the system; it keeps some, as much as its thresholds of the moment say."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
