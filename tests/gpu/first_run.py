"""The parts of first_run.sh: `python first_run.py all [PART...]` or `python first_run.py PART`, from a checkout's root.

`all` imports the libraries once, before CUDA is touched, and forks a process for each part.

facts      the machine, the versions, whether torch sees the GPU; how fast one large product is
smoke      tiny bases: training, pictures, grid, merge on the GPU in float32 and bfloat16 beside the CPU in float32;
           again and resumed (equal bytes?), offload, previews, float16, other methods
quantised  int8, float8 (torchao) and nf4 (bitsandbytes), where installed: what an update holds beside what is promised
tests      tests that ask for a GPU, if there are any; then the files whose commands choose the device themselves
estimates  `qrlora estimate`, whole, random weights: SDXL, SD3.5-medium, FLUX.1-dev
peft       an update's extra time and memory against PEFT's LoRA, and 500 updates, SDXL and FLUX.1-dev
bench      bases and sampling at full size, where a step's time goes
decode     a real-sized VAE: time and memory of 1 to 12 pictures, whole and one by one
cards      SDXL on a card of 24, 16, 12, 10 GB: does it fall back to recomputing, and what does a step take then
pretrain   built-in bases, each from its shipped weights on, as long as the time left allows; they come back in pieces
summary    the table

A line of $RESULTS says one thing: part, what, value, unit, ok (true, false, null: a figure alone), note.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEVICE, DRY = os.environ.get("DEVICE", "cuda"), bool(os.environ.get("DRY"))
OUT, WORK = Path(os.environ.get("OUT", "out/gpu")), Path(os.environ.get("WORK") or tempfile.gettempdir())
RESULTS = OUT / "results.jsonl"
PART = sys.argv[1] if len(sys.argv) > 1 else "summary"
BEGUN, LEFT = time.monotonic(), float(os.environ.get("BUDGET", "60")) - 15
PIECE = 15_000_000
"""Bytes of a file that comes back."""
LIMITS = {
    "facts": 30,
    "smoke": 110,
    "estimates": 140,
    "peft": 75,
    "quantised": 55,
    "decode": 25,
    "cards": 40,
    "bench": 80,
    "tests": 60,
    "pretrain": 10_000,
}
"""Part -> the most seconds it may take; in order of value."""


# ------------------------------------------------------------------------------------------------------------------ all
def everything(parts: list[str]) -> None:
    """Each part in a process of its own, with what is left of the budget or its own limit."""
    end = BEGUN + float(os.environ.get("BUDGET", "560")) - 15  # for the table and the archives
    warmed()
    for part in parts or list(LIMITS):
        allowed = min(LIMITS.get(part, 60) * (8 if DRY else 1), end - time.monotonic())
        if allowed < (80 if part == "pretrain" and not DRY else 10):
            keep({"part": part, "what": "whole part", "note": "no time left", "ok": None})
            continue
        print(f"== {part}: at most {allowed:.0f} s of {end - time.monotonic():.0f} left", flush=True)
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(alone(part, allowed))
        code = waited(child, allowed)
        log = WORK / "logs" / f"{part}.log"
        print("\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.is_file() else "", flush=True)
        took = time.monotonic() - begun
        note = "" if code == 0 else "stopped at its time limit" if took >= allowed else f"ended with {code}"
        keep({"part": part, "what": "whole part", "value": took, "unit": "s", "note": note, "ok": code == 0})


def warmed() -> None:
    """What every part imports; nothing that would start CUDA."""
    begun = time.monotonic()
    try:
        import diffusers
        import torch  # noqa: F401
        import transformers  # noqa: F401

        import qrlora.estimate  # noqa: F401
        import qrlora.sampling  # noqa: F401
        import qrlora.training  # noqa: F401

        for name in ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"):
            getattr(diffusers, name)
        note, ok = "", True
    except Exception as error:
        traceback.print_exc()
        note, ok = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", False
    keep({"part": "all", "what": "imports", "value": time.monotonic() - begun, "unit": "s", "ok": ok, "note": note})


def alone(part: str, allowed: float) -> int:
    """In the forked process: the part, its output in its log."""
    global PART, BEGUN, LEFT
    PART, BEGUN, LEFT = part, time.monotonic(), allowed
    log = os.open(WORK / "logs" / f"{part}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        import torch

        if DEVICE != "cpu":
            try:
                torch.cuda.init()
            except RuntimeError as error:
                if "fork" not in str(error):
                    raise
                told = {**os.environ, "BUDGET": str(allowed + 15)}  # a library has touched CUDA: begin afresh
                os.execve(sys.executable, [sys.executable, __file__, part], told)
        with contextlib.suppress(NoTime):
            globals()[part]()
        return 0
    except KeyboardInterrupt:
        return 124
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()


def waited(child: int, allowed: float) -> int:
    """The exit code of a process that is asked to end at its limit, and made to ten seconds later."""
    deadline, asked = time.monotonic() + allowed, False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline + 10:
            os.kill(child, signal.SIGKILL)
        elif time.monotonic() > deadline and not asked:
            os.kill(child, signal.SIGINT)
            asked = True
        time.sleep(0.2)


def keep(row: dict[str, Any]) -> None:
    """A line of results, on disk at once."""
    with RESULTS.open("a") as file:
        file.write(json.dumps({k: v for k, v in row.items() if v not in (None, "")} | {"ok": row.get("ok")}) + "\n")


# -------------------------------------------------------------------------------------------------------------- helpers
def left() -> float:
    """Seconds of this part."""
    return LEFT - (time.monotonic() - BEGUN)


def tell(what: str, value: float | None = None, unit: str = "", ok: bool | None = None, note: str = "") -> None:
    """One line of results, on disk at once."""
    keep({"part": PART, "what": what, "value": value, "unit": unit, "ok": ok, "note": note})
    print(what, "" if value is None else f"{value:.4g} {unit}", {True: "ok", False: "NOT OK", None: ""}[ok], note)


class NoTime(Exception):
    """The part ends here."""


@contextlib.contextmanager
def trying(what: str, most: float = 1e9) -> Iterator[None]:
    """A piece of a part, of so many seconds at most: what fails in it is a result, and the next piece begins.

    Raises: NoTime: too little is left for another piece.
    """

    def over(*_: Any) -> None:
        raise TimeoutError(f"longer than {min(most, left()):.0f} s")

    if left() < 6:
        tell(what, note="no time left")
        raise NoTime
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, min(most, max(left() - 3, 1)))
    try:
        yield
    except NoTime:
        raise
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        tell(what, ok=False, note=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        forget()


def forget() -> None:
    """Give the GPU's memory back between pieces."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def settle() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], runs: int = 3) -> float:
    """Median seconds of a run, after one that warms up."""
    import statistics

    took = []
    for _ in range(runs + 1):
        settle()
        begun = time.perf_counter()
        work()
        settle()
        took.append(time.perf_counter() - begun)
    return statistics.median(took[1:])


def peak(work: Callable[[], Any]) -> float:
    """GB that a piece of work takes at its worst beyond what was there before."""
    import torch

    if not torch.cuda.is_available():
        work()
        return float("nan")
    settle()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    settle()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


# ---------------------------------------------------------------------------------------------------------------- facts
def facts() -> None:
    import importlib.metadata

    import torch

    for name in "torch diffusers transformers peft accelerate huggingface_hub torchao bitsandbytes".split():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            tell(name, note=importlib.metadata.version(name))
    if torch.cuda.is_available():
        tell("GPU", torch.cuda.mem_get_info()[0] / 1e9, "GB free", True, torch.cuda.get_device_name())
        tell("compute capability", note=".".join(map(str, torch.cuda.get_device_capability())))
    else:
        tell("GPU", ok=DEVICE == "cpu", note="torch sees none")
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(1024 if DRY else 8192, 1024 if DRY else 8192, device=DEVICE, dtype=dtype)
        tell(f"product, {dtype}".replace("torch.", ""), 2e-12 * len(x) ** 3 / timed(lambda x=x: x @ x), "TFLOP/s")
    with trying("import"):
        import qrlora
        from qrlora.families import choose_device, choose_dtype

        execution_device = choose_device(DEVICE)
        tell(
            "qrlora",
            note=f"{qrlora.__version__}, auto is {choose_device()} in {choose_dtype('auto', execution_device)}",
        )


# ---------------------------------------------------------------------------------------------------------------- smoke
def picture() -> Path:
    """A picture to learn from."""
    from PIL import Image, ImageDraw

    path = WORK / "lesson.png"
    if not path.is_file():
        image = Image.effect_noise((96, 80), 40).convert("RGB")
        ImageDraw.Draw(image).ellipse((20, 12, 76, 68), fill=(220, 60, 30))
        image.save(path)
    return path


def lesson(base: str, **changes: Any) -> tuple[Any, list[float]]:
    """The adapter of a short training, and its losses."""
    from qrlora.config import TrainConfig
    from qrlora.training import train

    losses: list[float] = []
    shutil.rmtree(WORK / "checkpoint", ignore_errors=True)
    told: dict[str, Any] = {
        "base": base,
        "image": picture(),
        "output": WORK / "smoke.safetensors",
        "steps": 4 if DRY else 12,
    }
    told |= {"checkpoint_dir": WORK / "checkpoint", **changes}
    heard = {"on_preview": lambda step, image: None} if changes.get("preview_every") else {}
    return train(TrainConfig(**told), on_step=lambda p: losses.append(p.loss), **heard), losses


def alike(one: Any, other: Any) -> float:
    """Cosine of two adapters' updates, all layers together."""
    import torch

    dot = a = b = 0.0
    for layer in one.layers:
        x, y = one.dense(layer).double(), other.dense(layer).double()
        dot, a, b = dot + float((x * y).sum()), a + float(x.square().sum()), b + float(y.square().sum())
    return dot / max((a * b) ** 0.5, torch.finfo(torch.float64).tiny)


def decibels(ours: list[Any], theirs: list[Any]) -> float:
    """PSNR of pictures, the worst."""
    import numpy as np

    def one(a: Any, b: Any) -> float:
        difference = np.square(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean()
        return 99.0 if difference == 0 else float(10 * np.log10(255**2 / difference))

    return min(one(a, b) for a, b in zip(ours, theirs, strict=True))


def smoke() -> None:
    import torch

    import pico
    from qrlora.built_in_bases import built_in_bases

    there = [] if DRY else list(built_in_bases())
    small = {family: str(pico.folder(family)) for family in ("sdxl", "sd3", "flux")}
    for base in (*there[:1], *([small["sdxl"]] if DRY else small.values()), *there[1:]):
        beside_the_cpu(base)
    variants: dict[str, dict[str, Any]] = {
        "offload and previews": {"offload": True, "preview_every": 2},
        "previews": {"preview_every": 2},
        "gradient checkpointing": {"gradient_checkpointing": True},
        "method lora": {"method": "lora"},
        "method qr-contrast": {"method": "qr-contrast"},
        "method peft:dora": {"method": "peft:dora"},
        "float16": {"dtype": "float16"},
    }
    for family, base in small.items():
        with trying(f"pico-{family}: interrupted and gone on", 40):
            whole, resumed = interrupted(base)
            same = all(torch.equal(whole.layers[x].B, resumed.layers[x].B) for x in whole.layers)
            tell(f"pico-{family}: interrupted and gone on, equal bytes", ok=same)
        for what, changes in variants.items():
            with trying(f"pico-{family}: {what}", 40):
                _, heard = lesson(base, device=DEVICE, **{"dtype": "bfloat16", "steps": 3, **changes})
                tell(f"pico-{family}: {what}", heard[-1], "loss", all(x == x and abs(x) < 1e9 for x in heard))


def beside_the_cpu(base: str) -> None:
    """Training, pictures, a grid and a merge in float32 and bfloat16 beside the CPU's float32."""
    import torch

    from qrlora.families import open_base
    from qrlora.injection import adapter_names
    from qrlora.merging import merge
    from qrlora.sampling import generate, grid

    name, told = Path(base).name, {"steps": 2 if DRY else 4}
    adapter: Any = None
    with trying(f"{name}: CPU", 60):
        adapter, losses = lesson(base, device="cpu", dtype="float32")
        true = generate(open_base(base, "cpu", "float32"), "a <c>", [(adapter, 1.0)], count=2, **told)
    if adapter is None:
        return
    for dtype, near, like, close in (("float32", 0.02, 0.98, 28.0), ("bfloat16", 0.1, 0.85, 16.0)):
        title = f"{name}, {dtype}"
        with trying(title, 60):
            ours, heard = lesson(base, device=DEVICE, dtype=dtype)
            off = max(abs(a - b) / b for a, b in zip(heard, losses, strict=True))
            tell(f"{title}: losses beside the CPU's", off, "largest relative difference", off < near)
            cosine = alike(ours, adapter)
            tell(f"{title}: adapter beside the CPU's", cosine, "cosine", cosine > like)
            again, _ = lesson(base, device=DEVICE, dtype=dtype)
            tell(
                f"{title}: trained again, equal bytes",
                ok=all(torch.equal(ours.layers[x].B, again.layers[x].B) for x in ours.layers),
            )
        with trying(f"{title}, pictures", 60):
            opened = open_base(base, DEVICE, dtype)
            drawn = generate(opened, "a <c>", [(adapter, 1.0)], count=2, **told)
            psnr = decibels(drawn, true)
            tell(f"{title}: pictures beside the CPU's", psnr, "dB", psnr > close)
            cells = grid(opened, "a <c>", adapter, adapter, [0.0, 0.5], [0.0, 0.5], **told)
            alone = generate(opened, "a <c>", [(merge([adapter, adapter], [0.5, 0.5]), 1.0)], **told)
            psnr = decibels([cells[1][1]], alone)
            tell(f"{title}: a cell of a grid beside the merged file's picture", psnr, "dB", psnr > close)
            tell(f"{title}: nothing is left on the base", ok=not adapter_names(opened.model))


def interrupted(base: str) -> tuple[Any, Any]:
    """An adapter learnt at once, and one whose training was stopped after step 5 of 8 and started again."""
    from qrlora.config import TrainConfig
    from qrlora.training import train

    class Stop(Exception):
        pass

    def halt(progress: Any) -> None:
        if progress.step == 5:
            raise Stop

    told: dict[str, Any] = {
        "base": base,
        "image": picture(),
        "steps": 8,
        "save_every": 2,
        "device": DEVICE,
        "dtype": "bfloat16",
    }
    told |= {"output": WORK / "i.safetensors", "checkpoint_dir": WORK / "interrupted"}
    shutil.rmtree(WORK / "interrupted", ignore_errors=True)
    whole = train(TrainConfig(**told))
    with contextlib.suppress(Stop):
        train(TrainConfig(**told), on_step=halt)
    return whole, train(TrainConfig(**told))


# ------------------------------------------------------------------------------------------------------------ quantised
def quantised() -> None:
    """An update of SDXL, random weights, 512 px: most GB in use beside what is counted, activations kept."""
    import importlib.util

    for kind, library in (("", ""), ("int8", "torchao"), ("nf4", "bitsandbytes"), ("float8", "torchao")):
        if (library and importlib.util.find_spec(library) is None) or (kind == "nf4" and DEVICE == "cpu"):
            tell(kind, note=f"{library} is not installed, or there is no GPU")
            continue
        title = f"SDXL 512 px {kind or 'bfloat16'}"
        with trying(title, 40):
            told_of(estimated("sdxl", 512, title.replace(" ", "-"), quantize=kind, against="", steps=2), title)
    for kind in ("int8", "float8"):
        with trying(f"pico-sdxl {kind}", 30):
            import pico

            _, heard = lesson(str(pico.folder("sdxl")), device=DEVICE, dtype="bfloat16", quantize=kind, steps=3)
            tell(f"pico-sdxl {kind}: training", heard[-1], "loss", heard[-1] == heard[-1])


# ------------------------------------------------------------------------------------------------------------- estimates
def estimated(base: str, resolution: int, name: str, **settings: Any) -> dict[str, Any]:
    """What `qrlora estimate` finds: its tables are in the log, its report among the reports."""
    from qrlora.cli.estimate import print_report
    from qrlora.estimate import estimate

    if DRY:
        import pico

        base, resolution = str(pico.folder({"sdxl": "sdxl", "sd3.5-medium": "sd3"}.get(base, "flux"))), pico.SIZE
    found = estimate(base, resolution=resolution, device=DEVICE, **settings)
    print_report(found)
    report = dataclasses.asdict(found)
    (WORK / "reports" / f"{name}.json").write_text(json.dumps(report, indent=1))
    return report


def told_of(report: dict[str, Any], title: str) -> None:
    """Seconds and GB of each stage; of an update also what was counted before."""
    weights = report["quantize"] or report["dtype"]
    activations = "recomputed" if report["gradient_checkpointing"] else "kept"
    tell(
        f"{title}: how",
        note=report["how"] + (f"; {report['why']}" if report["why"] else ""),
        ok=report["how"] == "whole",
    )
    for method, stages in report["stages"].items():
        for what, stage in stages.items():
            tell(f"{title}, {method}: {what}", stage["seconds"], "s")
            if stage.get("peak"):
                counted = (
                    report["weights"][weights] + report["adapter"][method] + report["step"][method][activations]
                ) / 1e9
                note, seen = f"counted {counted:.1f}" if what == "update" else "", stage["peak"] / 1e9
                tell(f"{title}, {method}: {what}", seen, "GB", seen < 1.15 * counted + 0.5 if note else None, note)


def estimates() -> None:
    runs: list[tuple[str, int, dict[str, Any]]] = [
        ("sdxl", 1024, {}),
        ("flux-dev", 512, {}),
        ("sd3.5-medium", 1024, {"against": ""}),
    ]
    runs += [("flux-dev", 1024, {"against": ""}), ("sdxl", 1024, {"against": "", "gradient_checkpointing": True})]
    for base, resolution, how in runs:
        title = f"{base} {resolution} px{', recomputed' if how.get('gradient_checkpointing') else ''}"
        with trying(title, 60):
            told_of(estimated(base, resolution, title.replace(" ", "-").replace(",", ""), steps=3, **how), title)


# ----------------------------------------------------------------------------------------------------------------- peft
def rows_of(rows: list[Any]) -> None:
    """Rows of the benches' harness."""
    for row in rows:
        for way in row.measured:
            met = row.met(way) if way in row.goals else None
            against = "" if way == row.ours else f"{row.ratio(way):.3g}x ours"
            tell(
                f"{row.name}: {way}",
                row.median(way),
                row.unit,
                met,
                ", ".join(x for x in (against, row.goals.get(way, "")) if x),
            )
        if row.notes:
            tell(f"{row.name}: notes", note=", ".join(f"{k} {v}" for k, v in row.notes.items()))


def peft() -> None:
    import torch

    import step

    torch.manual_seed(0)
    rounds = 1 if DRY else 4
    if DRY:
        with trying("attention 640"):
            rows_of(step.attention(640, 64, torch.bfloat16, DEVICE, rounds))
        return
    for name, resolution in (("sdxl", 1024), ("flux-dev", 512)):
        with trying(f"{name} {resolution} px"):
            rows_of(step.whole(name, resolution, step.FULL_SIZE.get(name, (0, ""))[1], DEVICE, rounds))


# ---------------------------------------------------------------------------------------------------------------- bench
def bench() -> None:
    import torch

    torch.manual_seed(0)
    import basis
    import parts
    import sampling
    import step

    with trying("bases against full SVD"):
        rows_of([basis.against_svd((800, 800) if DRY else (3072, 3072), "trained", DEVICE, True)])
    if DRY:
        return
    for name in ("sdxl", "flux-dev"):
        with trying(f"basis {name}"):
            rows_of(basis.whole(name, DEVICE, 1))
    for name in ("sdxl", "flux-dev"):
        with trying(f"sampling {name}"):
            rows_of(sampling.full_sized(name, 1024, DEVICE, 4))
    with trying("grid"):
        rows_of([sampling.grids("tiny-sdxl", DEVICE, 6, 4, 1)])
    with trying("where a step's time goes"):
        ways, loss = step.full_size_lesson("sdxl", DEVICE)
        works = {way: step.update(model, learn, loss) for way, (model, learn) in ways.items() if way != "floor"}
        for way, told in parts.parts(works, DEVICE, 3).items():
            for kind, took in told.items():
                tell(f"sdxl, {way}: {kind}", 1e3 * took, "ms")


# --------------------------------------------------------------------------------------------------------------- decode
def decode() -> None:
    import diffusers
    import torch

    from qrlora.families.base_without_weights import materialise
    from qrlora.families.public_configs import VAE

    side = 128 if DRY else 1024
    for dtype in (torch.float32,) if DEVICE == "cpu" else (torch.bfloat16, torch.float32):
        with torch.device("meta"):
            vae = diffusers.AutoencoderKL.from_config(VAE).eval().requires_grad_(False)
        torch.nn.Module.to(vae, dtype)
        materialise(vae, DEVICE)
        name = str(dtype).removeprefix("torch.")
        with trying(f"encode {name}"), torch.no_grad():
            pixels = torch.randn(1, 3, side, side, device=DEVICE, dtype=dtype)
            tell(f"{name}, encode 1 at {side} px", peak(lambda: vae.encode(pixels)), "GB")
            tell(f"{name}, encode 1 at {side} px", timed(lambda: vae.encode(pixels)), "s")
        for count in (1, 2) if DRY else (1, 4, 8, 12):
            with trying(f"decode {count} {name}"), torch.no_grad():
                small = side // 2 ** (len(vae.config.block_out_channels) - 1)
                latents = torch.randn(count, vae.config.latent_channels, small, small, device=DEVICE, dtype=dtype)
                used = peak(lambda x=latents: vae.decode(x))
                tell(f"{name}, decode {count} at {side} px", used, "GB")
                tell(f"{name}, decode {count} at {side} px", timed(lambda x=latents: vae.decode(x), 1), "s")
                whole = vae.decode(latents)[0]
                vae.enable_slicing()
                sliced = vae.decode(latents)[0]
                error = float((whole - sliced).float().norm() / sliced.float().norm())
                tell(
                    f"{name}, decode {count} one by one",
                    peak(lambda x=latents: vae.decode(x)),
                    "GB",
                    error < 0.02,
                    f"differs by {error:.1e}",
                )
                tell(f"{name}, decode {count} one by one", timed(lambda x=latents: vae.decode(x), 1), "s")
                vae.disable_slicing()


# ---------------------------------------------------------------------------------------------------------------- cards
def cards() -> None:
    """SDXL's training loop at 1024 px with random weights, as on smaller cards."""
    import warnings

    import torch

    import step
    from qrlora.config import TrainConfig
    from qrlora.families.base_without_weights import blank_base, blank_example, materialise
    from qrlora.injection import initialise
    from qrlora.training.distributed import Processes
    from qrlora.training.training_loop import gradient_checkpointing, make_loss
    from qrlora.training_example import TrainingExamples

    if DRY or DEVICE == "cpu":
        tell("cards", note="needs a GPU")
        return
    base, _, tokens = blank_base("sdxl")
    torch.nn.Module.to(base.model, torch.bfloat16).requires_grad_(False).eval()
    materialise(base.model, DEVICE)
    layers = step.shapes(base, base.defaults.targets)
    learn = initialise(base.model, step.starts(layers, "qr", 64), "run")
    config = TrainConfig(base="sdxl", batch_size=1).filled(base.defaults)
    example = TrainingExamples(*blank_example(base, 1024, tokens, 1, DEVICE))
    draw = make_loss(config, base, example, torch.Generator().manual_seed(0), Processes())
    optimizer = torch.optim.Adam(learn, lr=1e-4, fused=True)
    whole = torch.cuda.get_device_properties(0).total_memory
    for card in (24, 16, 12, 10):
        with trying(f"{card} GB"), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, (card - 0.7) * 1e9 / whole))  # 0.7 GB: the context

            def work() -> None:
                optimizer.zero_grad()
                draw().backward()

            with gradient_checkpointing(base.model, None) as with_oom_retry:

                def update() -> None:
                    with_oom_retry(work)
                    optimizer.step()

                used = peak(update)
                took = timed(update, 4)
            fell = any("memory ran out" in str(w.message) for w in said)
            tell(
                f"{card} GB card, update",
                took,
                "s",
                True,
                f"{'gradient_checkpointing' if fell else 'kept'}, {used:.1f} GB above the weights",
            )
    torch.cuda.set_per_process_memory_fraction(1.0)


# ---------------------------------------------------------------------------------------------------------------- tests
def tests() -> None:
    own = sorted({str(p) for sign in ("gpu", "cuda") for p in Path("tests").glob(f"test*{sign}*.py")})
    files = [
        x
        for x in (
            "tests/test_parallel_map.py",
            "tests/test_linalg.py",
            "tests/test_adapted_linear.py",
            "tests/test_cli.py",
        )
        if Path(x).is_file()
    ]
    runs = {"for a GPU": own} if own else {"for a GPU, by name": ["-k", "gpu or cuda", "tests"]}
    runs["that choose the device themselves"] = files[:1] if DRY else files
    for what, words in runs.items():
        with trying(what):
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
            if shutil.which("nproc") and os.cpu_count() and os.cpu_count() > 4:
                command += ["-n", "8"]
            done = subprocess.run(command, timeout=max(left() - 5, 10), capture_output=True, text=True)
            print(done.stdout[-6000:], done.stderr[-2000:])
            lines = [x for x in done.stdout.strip().splitlines() if x.strip()]
            tell(
                f"tests {what}",
                ok=done.returncode in (0, 5),
                note=lines[-1] if lines else f"ended with {done.returncode}",
            )
            for line in [x for x in lines if x.startswith(("FAILED", "ERROR"))][:15]:
                tell("failed", ok=False, note=line[:300])


# ------------------------------------------------------------------------------------------------------------- pretrain
def pretrain() -> None:
    """Every base of BASE from its shipped weights on (PRETRAIN may say `--start ''`), for an equal share of the time that
    is left, its rate falling by the clock; all come back in pieces."""
    import shlex

    import torch

    from qrlora.world import drawings, pretraining_set
    from qrlora.world import pretrain as script

    given = shlex.split(os.environ.get("PRETRAIN", ""))
    kinds = {f.name: type(f.default) for f in dataclasses.fields(script.PretrainingSettings)}
    names = [x.removeprefix("--").replace("-", "_") for x in given[::2]]
    chosen = {name: kinds[name](value) for name, value in zip(names, given[1::2], strict=True)}
    if DRY:  # few pictures: to draw and encode all takes half an hour of a CPU
        few, styles = pretraining_set.known_contents()[:40:10], dict(list(pretraining_set.STYLES.items())[:3])
        pretraining_set.known_contents, pretraining_set.STYLES = lambda: few, styles
        chosen |= {"batch_size": 8, "samples": 8 * 60, "warmup": 2, "styled_hands": 20, "random": 25}
    short = drawings.hands_of_excerpt(drawings.KNOWN_HANDS)
    note = f"the excerpt that ships of {', '.join(short)}: SHEETS names a folder of the full ones" if short else "full"
    tell("sheets of drawings", note=note)
    bases = os.environ.get("BASE", "tiny-sdxl").split(",")
    for k, base in enumerate(bases):
        settings = script.PretrainingSettings(**{"samples": 100 * 10**6, "start": base, **chosen})
        minutes = max((left() - 20) / (len(bases) - k) - 20, 5) / 60  # the rest is for exports and a look at them
        pretrain_base(base, settings, minutes)
    with trying("packing"):
        packed(WORK / "base")
    torch.cuda.empty_cache() if torch.cuda.is_available() else None


def pretrain_base(base: str, settings: Any, minutes: float) -> None:
    """One base: pre-trained, written, and its loss beside the shipped one's."""
    from qrlora.world import pretrain as script

    work, folder = WORK / "pretraining" / base, WORK / "base" / base
    with trying(f"{base}: pre-training"):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            run = script.pretrain(base, work, settings, DEVICE, 10**9, float("inf"), within=minutes, excerpt=True)
        print(said.getvalue()[-3000:])
        rows = [json.loads(x) for x in (work / "log.jsonl").read_text().splitlines()]
        tell(f"{base}: images", rows[-1]["samples_per_second"], "a second", note=f"batch {settings.batch_size}")
        tell(f"{base}: images shown", run.step * settings.batch_size, note=f"loss {rows[-1]['loss']}")
        script.export_base(run, work / "log.jsonl", folder, round(minutes, 2))
        data = script.load_or_build_training_set(run, work / "pretraining_set.safetensors")
    with trying(f"{base}: loss on fixed noise, shipped base beside this one"):
        for what, place in (("shipped", base), ("this one", str(folder))):
            tell(f"{base}: loss of fixed images, {what}", fixed_loss(place, data), "")


def fixed_loss(place: str, data: Any) -> float:
    """Mean over 256 images of known contents in known styles, the same draws for every base."""
    import torch

    from qrlora.families import SizeConditioning, open_base
    from qrlora.training import denoising_loss
    from qrlora.world.captions import caption
    from qrlora.world.drawings import SIZE

    base, generator = open_base(place, DEVICE, "float32"), torch.Generator().manual_seed(7)
    total, rounds = 0.0, 1 if DRY else 8
    for _ in range(rounds):
        rows = torch.randint(*data.kinds["styles"], (32,), generator=generator)
        clean = data.latents[rows.to(data.latents.device)].to(DEVICE).float()
        noise = torch.randn(clean.shape, generator=generator).to(DEVICE)
        moment = base.noising.sample_time(32, generator)
        prompts = [caption(*data.labels(row)[:2]) for row in rows.tolist()]
        condition = base.encode_prompt(prompts, SizeConditioning.uncropped(SIZE, SIZE)).to(DEVICE)
        with torch.no_grad(), base.on_device():
            loss = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, moment, condition)
        total += float(loss)
    return total / rounds


def packed(folder: Path) -> None:
    """All bases of the folder as base.tar.partN, pieces small enough to come back."""
    whole = WORK / "base.tar"
    with tarfile.open(whole, "w") as archive:
        for base in sorted(folder.iterdir()):
            archive.add(base, base.name)
    data = whole.read_bytes()
    for k in range(0, len(data), PIECE):
        (OUT / f"base.tar.part{k // PIECE}").write_bytes(data[k : k + PIECE])
    tell("bases written", len(data) / 1e6, "MB", len(data) < 4 * PIECE, "cat base.tar.part* | tar x")


# -------------------------------------------------------------------------------------------------------------- summary
def summary() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines() if line.strip()]
    bad = [x for x in rows if x.get("ok") is False]
    print(f"# First run on a GPU, {time.strftime('%Y-%m-%d')}\n")
    print(f"{len(rows)} results, {sum(x.get('ok') is True for x in rows)} as they should be, {len(bad)} not.\n")
    if bad:
        print("## Not as it should be\n")
        for x in bad:
            print(f"- {x['part']}: {x['what']} {number(x)} {x.get('note', '')}")
        print()
    for part in dict.fromkeys(x["part"] for x in rows):
        print(f"## {part}\n\n| what | value | ok | note |\n|---|---:|---|---|")
        for x in (x for x in rows if x["part"] == part):
            mark = {True: "yes", False: "**no**", None: ""}[x.get("ok")]
            print(
                f"| {str(x['what']).replace('|', '/')} | {number(x)} | {mark} | {str(x.get('note', '')).replace('|', '/')} |"
            )
        print()


def number(row: dict[str, Any]) -> str:
    return "" if row.get("value") is None else f"{row['value']:.4g} {row.get('unit', '')}".strip()


if __name__ == "__main__":
    if PART == "all":
        everything([name for words in sys.argv[2:] for name in words.split()])
    elif PART in LIMITS or PART == "summary":
        with contextlib.suppress(NoTime):
            globals()[PART]()
    else:
        sys.exit(f"no part {PART!r}; there are: all, summary, {', '.join(LIMITS)}")
