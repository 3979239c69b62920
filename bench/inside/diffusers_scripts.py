"""diffusers' own examples/dreambooth scripts on pico pipelines on CPU: alone, and with every LoRA frozen as by
`accelerate launch -m qrlora.trainers.peft SCRIPT ...`, one row a way.

    PYTHONPATH=src PYTHON_WITH_TORCHVISION bench/inside/diffusers_scripts.py FOLDER_OF_DIFFUSERS [ways]
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from watch import apart, script, span_error, ways

FOLDER = Path(sys.argv[1]).resolve() / "examples" / "dreambooth"
sys.path.insert(0, str(Path(__file__).parents[2] / "testing"))
torch.set_num_threads(1)

import diffusers  # noqa: E402
import transformers  # noqa: E402

import pico  # noqa: E402

HELD: dict[str, Any] = {}
ENDINGS = (".lora.down.weight", ".lora_A.weight", ".lora_linear_layer.down.weight")
CLASSES = {
    "unet": (diffusers, "UNet2DConditionModel"),
    "transformer": (diffusers, "FluxTransformer2DModel"),
    "text_encoder": (transformers, "CLIPTextModel"),
    "text_encoder_2": (transformers, "CLIPTextModelWithProjection"),
}


def freezing() -> None:
    from qrlora.trainers.peft import freeze_every_peft_lora

    freeze_every_peft_lora()


def remembering(freeze: bool) -> None:
    """Hold the models that the script loads, and their numbers."""
    if freeze:
        freezing()
    for part, (library, name) in CLASSES.items():
        kind = getattr(library, name)

        def load(*arguments: Any, part: str = part, plain: Any = kind.from_pretrained, **settings: Any) -> Any:
            HELD[part] = plain(*arguments, **settings)
            HELD[f"{part} before"] = {key: x.clone() for key, x in HELD[part].state_dict().items()}
            return HELD[part]

        kind.from_pretrained = load


def factor_error(file: Path) -> tuple[float, bool]:
    """The largest error of any A in a file against the weights that were loaded; whether one of these moved."""
    from safetensors.torch import load_file

    saved, error = load_file(file), 0.0
    for key, A in saved.items():
        name = next((key.removesuffix(ending) for ending in ENDINGS if key.endswith(ending)), "")
        part, _, layer = name.partition(".")
        if layer:
            before = HELD[f"{part} before"]
            W = before.get(f"{layer}.weight", before.get(f"{layer.removeprefix('text_model.')}.weight"))
            kept = W.to(HELD[part].dtype).float()  # as the script casts it before it adds a LoRA
            error = max(error, span_error(A.float(), kept))
    moved = False
    for part in [part for part in CLASSES if part in HELD]:
        now = {key.replace(".base_layer.", "."): x for key, x in HELD[part].state_dict().items() if "lora_" not in key}
        for key, before in HELD[f"{part} before"].items():
            moved |= not torch.equal(before.to(now[key].dtype), now[key])
    return error, moved


def up(key: str) -> str:
    return key.replace("lora.down", "lora.up").replace("lora_A", "lora_B").replace("layer.down", "layer.up")


def run(kind: str, arguments: list[str], place: Path, out: Path, freeze: bool) -> dict[str, Any]:
    line = command(kind, place, out) + arguments
    file = out / "pytorch_lora_weights.safetensors"
    return script(FOLDER / line[0], line[1:], lambda: remembering(freeze), lambda: factor_error(file))


def command(kind: str, place: Path, out: Path) -> list[str]:
    """A script and its arguments."""
    common: Mapping[str, Any] = {
        "pretrained_model_name_or_path": place / f"pico-{kind}", "instance_data_dir": place / "pictures",
        "instance_prompt": "a dog", "resolution": pico.SIZE, "train_batch_size": 1, "max_train_steps": 4,
        "learning_rate": 1e-3, "lr_warmup_steps": 0, "output_dir": out, "seed": 1, "rank": 4, "checkpointing_steps": 2,
    }  # fmt: skip
    line = [word for name, value in common.items() for word in (f"--{name}", str(value))]
    if kind == "flux":
        line += ["--max_sequence_length", "16", "--guidance_scale", "1", "--lora_alpha", "4"]
    return [f"train_dreambooth_lora_{kind}.py", *line]


WAYS = {
    "sdxl": ("sdxl", ""),
    "sdxl, both text encoders": ("sdxl", "--train_text_encoder"),
    "sdxl, gradient checkpointing": ("sdxl", "--gradient_checkpointing"),
    "sdxl, accumulation": ("sdxl", "--gradient_accumulation_steps 2"),
    "flux": ("flux", ""),
    "flux, bf16": ("flux", "--mixed_precision bf16"),
}


def main(wanted: list[str]) -> None:
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["QRLORA_CACHE"] = str(place / "cache")
        os.environ["HF_HUB_OFFLINE"] = "1"
        (place / "pictures").mkdir()
        for k in range(2):
            Image.effect_noise((pico.SIZE, pico.SIZE), 60).convert("RGB").save(place / "pictures" / f"{k}.png")
        for kind in ("sdxl", "flux"):
            pico.folder(kind).rename(place / f"pico-{kind}")
        if not wanted or "resume" in wanted:
            whole = apart(run, "sdxl", [], place, place / "resumed", True)["losses"]
            again = ["--resume_from_checkpoint", "checkpoint-2"]
            rest = apart(run, "sdxl", again, place, place / "resumed", True)["losses"]
            same_bits = "bit for bit" if whole[2:] == rest else (whole, rest)
            print(f"sdxl, resumed from checkpoint-2: losses {same_bits}", flush=True)
        if not wanted or "launched" in wanted:
            apart(run, "sdxl", [], place, place / "ours", True)
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "-m", "qrlora.trainers.peft"]
            words = command("sdxl", place, place / "launched")
            done = subprocess.run([*launch, str(FOLDER / words[0]), *words[1:]], capture_output=True, text=True)
            good = done.returncode == 0 and same(place / "ours", place / "launched")
            print(f"sdxl, accelerate launch -m: {'the same file' if good else done.stderr[-2000:]}", flush=True)

        def one(way: str, ours: bool) -> dict[str, Any]:
            kind, words = WAYS[way]
            return apart(run, kind, words.split(), place, place / ("ours" if ours else "theirs"), ours)

        ways(WAYS, wanted, one)


def same(one: Path, other: Path) -> bool:
    """Whether two files have equal layers and equal A's, to the last bit."""
    from safetensors.torch import load_file

    files = [load_file(x / "pytorch_lora_weights.safetensors") for x in (one, other)]
    pairs = [(x, files[1][key]) for key, x in files[0].items() if "down" in key]
    return files[0].keys() == files[1].keys() and bool(pairs) and all(torch.equal(x, y) for x, y in pairs)


if __name__ == "__main__":
    main(sys.argv[2:])
