"""CUDA emulated on the CPU: real numbers, devices checked. Imported before qrlora, under run.sh, which builds and
preloads what answers CUDA's dispatch key; here is what Python asks of `torch.cuda`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import types
from typing import Any

import torch
import torch.utils._device

spec: Any = importlib.util.spec_from_file_location("emu", os.environ["EMU_SO"])
emu = importlib.util.module_from_spec(spec)
"""live(), peak(), reset(), limit(bytes): of both GPUs together; a limit below 0 is none."""
spec.loader.exec_module(emu)

GPUS = int(os.environ.get("GPUS", "2"))
CAPABILITY = [(9, 0)]
TOTAL = [80 * 10**9]
"""What a GPU says that it is able to do, and its memory in bytes; change the entry."""
_current = [0]


def _device(which: Any) -> torch.device:
    device = (
        torch.device("cuda" if which is None else which) if not isinstance(which, int) else torch.device("cuda", which)
    )
    return device if device.index is not None else torch.device("cuda", _current[0])


class Stream:
    """All is done when it is asked for."""

    cuda_stream = 0

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = _device(device)

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or Event()


class Event:
    """Recorded before it is waited for, else the wait fails."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.done = False

    def record(self, stream: Any = None) -> None:
        self.done = True

    def synchronize(self) -> None:
        assert self.done

    def wait(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0


class Current:
    """torch.cuda.device."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def __enter__(self) -> None:
        self.before = _current[0]
        if self.device is not None:
            set_device(self.device)

    def __exit__(self, *_: Any) -> None:
        _current[0] = self.before


def set_device(device: Any) -> None:
    """torch.cuda.set_device."""
    index = device if isinstance(device, int) else torch.device(device).index
    if index is not None and index >= 0:
        _current[0] = index


def _properties(device: Any = None) -> Any:
    major, minor = CAPABILITY[0]
    return types.SimpleNamespace(
        total_memory=TOTAL[0], name="emulated", multi_processor_count=132, major=major, minor=minor
    )


answers: dict[str, Any] = {  # each name a function of its own: dynamo counts them
    "Event": Event,
    "Stream": Stream,
    "_is_in_bad_fork": lambda: False,
    "_lazy_init": lambda *_, **__: None,
    "current_device": lambda: _current[0],
    "current_stream": lambda device=None: Stream(device),
    "default_stream": lambda device=None: Stream(device),
    "device": Current,
    "device_count": lambda: GPUS,
    "empty_cache": lambda *_, **__: None,
    "get_device_capability": lambda device=None: CAPABILITY[0],
    "get_device_name": lambda device=None: "emulated",
    "get_device_properties": _properties,
    "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
    "ipc_collect": lambda *_, **__: None,
    "is_available": lambda: True,
    "is_bf16_supported": lambda *_, **__: True,
    "is_initialized": lambda: True,
    "manual_seed": lambda *_, **__: None,
    "manual_seed_all": lambda *_, **__: None,
    "max_memory_allocated": lambda device=None: emu.peak(),
    "max_memory_reserved": lambda device=None: emu.peak(),
    "mem_get_info": lambda device=None: (TOTAL[0] - emu.live(), TOTAL[0]),
    "memory_allocated": lambda device=None: emu.live(),
    "memory_reserved": lambda device=None: emu.live(),
    "reset_peak_memory_stats": lambda device=None: emu.reset(),
    "set_device": set_device,
    "set_rng_state": lambda *_, **__: None,
    "stream": lambda stream: contextlib.nullcontext(),
    "synchronize": lambda *_, **__: None,
}
for name, answer in answers.items():
    setattr(torch.cuda, name, answer)

tensor: Any = torch.Tensor
tensor.pin_memory = lambda self, *_: self.clone()
tensor.is_pinned = lambda self, *_: False
tensor.record_stream = lambda *_, **__: None
_deepcopy = tensor.__deepcopy__


def deepcopy(self: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """copy.deepcopy of a tensor, whose storage torch would make by itself, which needs a driver."""
    if type(self) is not torch.Tensor or not self.is_cuda or id(self) in memo:
        return _deepcopy(self, memo)
    return memo.setdefault(id(self), self.detach().clone().requires_grad_(self.requires_grad))


tensor.__deepcopy__ = deepcopy
backend: Any = torch.backends.cuda
backend.is_built = lambda: True
torch.utils._device._device_constructors()  # a list that torch makes once; after the next line it would miss `empty`
_empty = torch.empty


def empty(*size: Any, pin_memory: bool = False, **how: Any) -> torch.Tensor:
    """torch.empty, whose pinned memory needs a driver."""
    return _empty(*size, **how)


torch.empty = empty  # pyright: ignore[reportAttributeAccessIssue]
