"""What one run of a trainer's own script does: losses, trained parameters, memory kept for the backward pass, and
seconds of the processor, which other programs on the machine do not lengthen.

Runs happen in children of a process that has imported the trainer, so that none sees what another left behind.
"""

import contextlib
import functools
import multiprocessing
import os
import runpy
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PATIENCE = 900
"""Seconds a run may take."""


class Watch:
    """Looks on while something trains with accelerate."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.numbers: list[int] = []
        self.kept: list[int] = []
        self.times: list[float] = []
        self._saved: dict[int, int] = {}

    def save(self, x: Tensor) -> Tensor:
        """What autograd keeps, by storage; weights, which are leaves without a history, are there anyhow."""
        weight = (x if x._base is None else x._base).is_leaf and x.grad_fn is None and x.device.type != "meta"
        if not (weight and isinstance(x if x._base is None else x._base, torch.nn.Parameter)) and x.numel():
            storage = x.untyped_storage()
            self._saved[storage.data_ptr()] = storage.nbytes()
        return x

    def backward(self, loss: Tensor) -> None:
        self.losses.append(float(loss.detach()))
        self.kept.append(sum(self._saved.values()))

    def stepped(self, optimizer: Any, *_: Any) -> None:
        self.numbers.append(sum(x.numel() for group in optimizer.param_groups for x in group["params"]))
        self.times.append(time.process_time())
        self._saved.clear()

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        import accelerate
        from torch.optim.optimizer import register_optimizer_step_post_hook

        plain = accelerate.Accelerator.backward

        def backward(accelerator: Any, loss: Tensor, **kwargs: Any) -> None:
            self.backward(loss)
            plain(accelerator, loss, **kwargs)

        accelerate.Accelerator.backward = backward
        hook = register_optimizer_step_post_hook(self.stepped)
        with torch.autograd.graph.saved_tensors_hooks(self.save, lambda x: x):
            yield
        hook.remove()
        accelerate.Accelerator.backward = plain

    def results(self) -> dict[str, Any]:
        steps = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        return {
            "losses": self.losses,
            "numbers": self.numbers[0] if self.numbers else 0,
            "kept": self.kept[0] if self.kept else 0,
            "step": statistics.median(steps) if steps else float("nan"),
        }


def script(path: Path, arguments: Sequence[str], patch: Callable[[], Any], after: Callable[[], Any]) -> dict[str, Any]:
    """Run a script as if by itself, with what `patch` does beforehand.

    Returns: what Watch has seen, and what `after` gives as "after".
    """
    watch = Watch()
    patch()
    sys.argv = [str(path), *arguments]
    with watch.looking():
        runpy.run_path(str(path), run_name="__main__")
    return watch.results() | {"after": after()}


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """work(...) in a child, whose prints go to the file $TRAINERS_LOG. Raises RuntimeError, with its traceback."""
    there, here = multiprocessing.get_context("fork").Pipe(False)
    log = os.environ.get("TRAINERS_LOG", os.devnull)

    def run() -> None:
        try:
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
            here.send((True, work(*arguments)))
        except BaseException:  # all of it is sent to the parent
            here.send((False, traceback.format_exc()))
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    here.close()
    if not there.poll(PATIENCE):
        process.kill()
        raise RuntimeError(f"took more than {PATIENCE} s")
    good, result = there.recv()
    process.join()
    if not good:
        raise RuntimeError(result)
    return result


def span_error(A: Tensor, W: Tensor) -> float:
    """How far the rows of A, as a projection, are from the leading right singular vectors of W, in float64; and from
    being orthonormal: the largest entry of the difference."""
    A, W = A.flatten(1).double(), W.flatten(1).double()
    V = torch.linalg.svd(W, full_matrices=False).Vh[: len(A)]
    return max(float((A.T @ A - V.T @ V).abs().max()), float((A @ A.T - torch.eye(len(A))).abs().max()))


def before_networks(module: Any, work: Callable[[], None]) -> None:
    """Have a trainer's network module do some work whenever it is asked for a network: the base is then as A is to see
    it, loaded, cast, and merged with what is merged beforehand."""
    for name in ("create_network", "create_arch_network", "create_network_from_weights"):
        if hasattr(module, name):
            setattr(module, name, functools.partial(_after, work, getattr(module, name)))


def _after(work: Callable[[], None], plain: Callable, *arguments: Any, **settings: Any) -> Any:
    work()
    return plain(*arguments, **settings)


def numbers(x: Tensor) -> Tensor:
    """Bytes of a tensor, of any dtype."""
    return x.detach().cpu().contiguous().view(torch.uint8).clone() if x.numel() and x.ndim else x.detach().cpu().clone()


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """Columns of text."""
    text = [[str(x) for x in row] for row in (head, *rows)]
    widths = [max(len(row[k]) for row in text) for k in range(len(head))]
    return "\n".join("  ".join(x.ljust(width) for x, width in zip(row, widths, strict=True)).rstrip() for row in text)


HEAD = ("way", "trained parameters", "first loss", "kept for backward, MB", "CPU s a step", "A against SVD", "base")


def compared(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, ...]:
    """A row of HEAD: ours against the trainer's own LoRA."""
    (error, moved), (_, theirs_moved) = ours["after"], theirs["after"]
    first, plain = ours["losses"][0], theirs["losses"][0]
    return (
        name,
        f"{ours['numbers']} of {theirs['numbers']}",
        "same bits" if first == plain else f"{first} against {plain}",
        f"{ours['kept'] / 1e6:.2f} of {theirs['kept'] / 1e6:.2f}",
        f"{ours['step']:.3f} of {theirs['step']:.3f}",
        f"{error:.0e}",
        "same" if not moved else "moved, as by theirs" if theirs_moved else "moved",
    )


def ways(every: Mapping[str, Any], wanted: Sequence[str], run: Callable[[str, bool], dict[str, Any]]) -> None:
    """Print a row for each way, run(way, whether ours). Exits with 1 if one fails."""
    rows, failed = [], []
    for way in [way for way in every if not wanted or way in wanted]:
        try:
            rows.append(compared(way, run(way, True), run(way, False)))
            print("  ".join(rows[-1]), flush=True)
        except RuntimeError as error:
            failed.append(way)
            print(f"{way}: FAILED\n{error}", flush=True)
    print(table(rows, HEAD))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
