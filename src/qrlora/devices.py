"""Device and dtype: choosing them, whether bfloat16 is fast there, free memory, returning memory to the system."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str = "auto") -> torch.device:
    """The torch device of a name; auto prefers cuda, then mps, then cpu.

    Raises: ValueError: no such device on this machine.
    """
    if device == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    unknown = f"no device {device!r} on this machine: use device=auto or device=cpu"
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(unknown) from error
    if found.type == "meta":  # it has shapes and no numbers
        raise ValueError(unknown)
    return found


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
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
    """Whether matrix products in bfloat16 are several times as fast there as in float32.

    Older GPUs (compute capability below 8.0) emulate them: `torch.cuda.is_bf16_supported()` is True there, too. It
    asks about the current GPU only.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    instructions = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return device.type == "cpu" and bool(instructions.get("avx512_bf16") or instructions.get("amx_bf16"))


def device_label(device: torch.device) -> str:
    """The device for messages: "NVIDIA L4 (cuda:0)", "cpu"."""
    return f"{torch.cuda.get_device_name(device)} ({device})" if device.type == "cuda" else str(device)


def gpu_hint() -> str:
    """How to get from the CPU onto a GPU of this machine, for a message."""
    if torch.backends.mps.is_available():
        return "use device=mps"
    if torch.cuda.is_available():
        return "use device=cuda"
    if torch.version.cuda or torch.version.hip:
        return "torch finds no GPU: with one, see to its driver (nvidia-smi)"
    index = "https://download.pytorch.org/whl/cu130"
    command = f"pip install --force-reinstall torch --index-url {index}"
    return f"this torch is built for CPUs alone: with an NVIDIA GPU, {command} (others: pytorch.org/get-started)"


def pages_to_host_memory(device: torch.device) -> bool:
    """Whether a full GPU pages to the computer's memory, tens of times as slow, instead of raising an out-of-memory
    error: NVIDIA's driver does on Windows, also in WSL."""
    return device.type == "cuda" and (sys.platform == "win32" or "microsoft" in platform.release().lower())


def total_memory(device: torch.device) -> int:
    """Bytes of memory of a GPU with CUDA, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if sys.platform == "win32":
        kilobytes = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
        return 1024 * kilobytes.value
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits_memory(what: str, needed: int, device: torch.device, hint: str) -> None:
    """Raises ValueError: what takes at least so many bytes, more than all the memory of a device, with a way out. A
    system that runs out of memory ends a process without a word."""
    if needed > (total := total_memory(device)):
        where = "the GPU" if device.type == "cuda" else "this machine"
        sizes = f"would take {needed / 1e9:,.0f} GB of memory or more, {where} has {total / 1e9:,.0f} GB"
        raise ValueError(f"{what} {sizes}: {hint}")


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that are free, including those that torch's allocator has reserved and does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def return_freed_memory() -> None:
    """Have glibc return freed memory to the system (`malloc_trim`): by itself it keeps some, by adaptive thresholds."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
