"""Messages of diffusers, transformers and the hub while a base is opened, kept to what helps a person."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterable, Iterator

import torch

from ..devices import device_label, gpu_hint
from ..safetensors_files import Checkpoint

SLOW_ON_CPU = 1_000_000_000
"""Parameters from which on a CPU takes minutes for an update or an image."""


class SlowDevice(UserWarning):
    """A base is on a device where training and sampling take hours."""


def log_opened_base(
    name: str, files: Iterable[Checkpoint], device: torch.device, dtype: torch.dtype, quantize: str
) -> None:
    """One line of the log "qrlora": base, device and dtype; a warning of a large base on a CPU.

    Args: files: of weights, which are counted.  device: where it computes.
    """
    kinds = " and ".join(x for x in (quantize, str(dtype).removeprefix("torch.")) if x)
    logging.getLogger("qrlora").info("%s on %s, in %s", name, device_label(device), kinds)
    count = sum(math.prod(place.shape) for file in files for place in file.places.values())
    if device.type == "cpu" and count > SLOW_ON_CPU:
        warnings.warn(
            f"{name} has {count / 1e9:.1f} billion parameters, and a CPU takes minutes for each of its updates and "
            f"denoising steps: {gpu_hint()}",
            SlowDevice,
            stacklevel=3,
        )


@contextlib.contextmanager
def opening_errors_in_one_line(name: str, what: str = "base model") -> Iterator[None]:
    """Messages of diffusers and the hub that a model cannot be had, of many kinds, as one line with the way out."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable = "not on this machine, and the hub cannot be reached: connect, or give a folder or file"

    def fail(reason: str, error: Exception) -> None:
        raise OSError(f"{what} {name!r}: {reason}") from error

    try:
        yield
    except GatedRepoError as error:
        fail(
            f"gated; accept its terms on https://huggingface.co/{name.partition('@')[0]} and run `hf auth login`", error
        )
    except RevisionNotFoundError as error:
        fail("the repository has no branch, tag or commit of that name", error)
    except RepositoryNotFoundError as error:
        fail("not on the hub, or private: check the spelling, or run `hf auth login`", error)
    except LocalEntryNotFoundError as error:
        fail(unreachable, error)
    except EntryNotFoundError as error:
        fail("no whole diffusers pipeline, it has no model_index.json", error)
    except HFValidationError as error:
        fail("neither a file or folder nor a possible hub name", error)
    except OSError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):  # as transformers reports it
            fail(unreachable, error)
        fail(next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__), error)


@contextlib.contextmanager
def config_errors_in_one_line(what: object) -> Iterator[None]:
    """Messages of libraries about a configuration, which their classes take as it stands, and where it cannot be fail
    in any way that Python has: as one line, with what was opened."""
    try:
        yield
    except (OSError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        line = " ".join(str(error).split())
        if isinstance(error, ValueError) and "\n" not in str(error).strip():
            raise
        said = f"{type(error).__name__}: {line}"
        raise ValueError(f"{what}: its configuration cannot be used ({said:.300})") from error


@contextlib.contextmanager
def libraries_silenced() -> Iterator[None]:
    """diffusers, transformers and what they load say nothing below an error while a base is opened; torchao, for one,
    lists the kernels that it lacks."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with _quiet_libraries():
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """`libraries_silenced` by the switches that diffusers and transformers have of their own."""
    from transformers.utils import logging as of_transformers  # first: importing diffusers makes it warn

    level = of_transformers.get_verbosity()
    of_transformers.set_verbosity_error()
    from diffusers.utils import logging as of_diffusers

    logs = ((of_transformers, level), (of_diffusers, of_diffusers.get_verbosity()))
    bars = [log for log, _ in logs if log.is_progress_bar_enabled()]
    for log, _ in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # newer diffusers say dtype for torch_dtype; the old word works in all versions we allow
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for log, before in logs:
            log.set_verbosity(before)
        for log in bars:
            log.enable_progress_bar()
