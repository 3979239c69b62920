"""ai-toolkit's own run.py on a pico FLUX.1 on CPU: `type: qrlora` against `type: diffusion_trainer`.

    PYTHONPATH=src PYTHON_OF_AI_TOOLKIT bench/inside/ai_toolkit.py FOLDER_OF_AI_TOOLKIT

Puts the extension's file of one line into the folder's extensions/ while it runs.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from watch import HEAD, apart, compared, numbers, script, span_error, table

FOLDER = Path(sys.argv[1]).resolve()
sys.path[:0] = [str(FOLDER), str(Path(__file__).parents[2] / "testing")]
os.chdir(FOLDER)
torch.set_num_threads(1)

import diffusers  # noqa: E402

import pico  # noqa: E402

HELD: dict[str, Any] = {}


def remembering() -> None:
    """Hold the transformer that it loads, and its numbers."""
    plain = diffusers.FluxTransformer2DModel.from_pretrained

    def load(*arguments: Any, **settings: Any) -> Any:
        HELD["model"] = plain(*arguments, **settings)
        HELD["before"] = {key: numbers(x) for key, x in HELD["model"].state_dict().items()}
        return HELD["model"]

    diffusers.FluxTransformer2DModel.from_pretrained = load


def factor_error(file: Path) -> tuple[float, bool]:
    """The largest error of any A in a file against the weights that were loaded; whether one of these moved."""
    from safetensors.torch import load_file

    modules, error = dict(HELD["model"].named_modules()), 0.0
    for key, A in load_file(file).items():
        if key.endswith(".lora_A.weight"):
            layer = key.removesuffix(".lora_A.weight").removeprefix("transformer.")
            error = max(error, span_error(A.float(), modules[layer].weight.detach()))
    now = HELD["model"].state_dict()
    return error, any(not torch.equal(x, numbers(now[key])) for key, x in HELD["before"].items())


def job(kind: str, place: Path, **train: Any) -> Path:
    """A job's file, JSON, which ai-toolkit reads like yaml."""
    process = {
        "type": kind, "training_folder": str(place / "out"), "device": "cpu",
        "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
        "save": {"dtype": "float32", "save_every": 100, "max_step_saves_to_keep": 1},
        "datasets": [{"folder_path": str(place / "pictures"), "caption_ext": "txt", "resolution": [64],
                      "num_workers": 0}],
        "train": {
            "batch_size": 1, "steps": 4, "train_unet": True, "train_text_encoder": False, "lr": 1e-3,
            "dtype": "float32", "gradient_checkpointing": False, "noise_scheduler": "flowmatch", "optimizer": "adamw",
            "skip_first_sample": True, "disable_sampling": True, **train,
        },
        "model": {"name_or_path": str(place / "pico-flux"), "is_flux": True, "quantize": False, "dtype": "float32"},
        "sample": {"sample_every": 1000, "prompts": [], "width": 64, "height": 64, "sampler": "flowmatch"},
    }  # fmt: skip
    path = place / f"{kind}.json"
    path.write_text(json.dumps({"job": "extension", "config": {"name": kind, "process": [process]}}))
    return path


def run(kind: str, place: Path, **train: Any) -> dict[str, Any]:
    os.environ["SEED"] = "1"
    file = place / "out" / kind / f"{kind}.safetensors"
    path = job(kind, place, **train)
    return script(FOLDER / "run.py", [str(path)], remembering, lambda: factor_error(file))


def main() -> None:
    from PIL import Image

    own = FOLDER / "extensions" / "qrlora" / "__init__.py"
    own.parent.mkdir(exist_ok=True)
    own.write_text("from qrlora.trainers.ai_toolkit import AI_TOOLKIT_EXTENSIONS\n")
    try:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            os.environ["QRLORA_CACHE"] = str(place / "cache")
            (place / "pictures").mkdir()
            for k in range(2):
                Image.effect_noise((64, 64), 60).convert("RGB").save(place / "pictures" / f"{k}.png")
                (place / "pictures" / f"{k}.txt").write_text("a dog")
            pico.folder("flux").rename(place / "pico-flux")
            ours = apart(lambda: run("qrlora", place))
            theirs = apart(lambda: run("diffusion_trainer", place))
            print(table([compared("ai-toolkit, flux", ours, theirs)], HEAD))
            more = apart(lambda: run("qrlora", place, steps=6))
            resumed = f"{len(more['losses'])} more, A {more['after'][0]:.0e} from SVD"
            print(f"ai-toolkit, flux, resumed at step 4 of 6: {resumed}")
    finally:
        own.unlink()
        own.parent.rmdir()


if __name__ == "__main__":
    main()
