"""musubi-tuner's own zimage_train_network.py and krea2_train_network.py at pico size on CPU, `networks.lora_...`
against `qrlora.networks.lora_...`, one row a way.

    PYTHONPATH=src PYTHON_OF_MUSUBI bench/inside/musubi.py FOLDER_OF_MUSUBI_TUNER [ways]

The models are narrow by their own constants; what loads, quantises, swaps, trains and saves is theirs.
"""

import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch import Tensor
from watch import apart, before_networks, numbers, script, span_error, ways

FOLDER = Path(sys.argv[1]).resolve()
SOURCE = FOLDER / "src" / "musubi_tuner"
sys.path.insert(0, str(SOURCE.parent))
torch.set_num_threads(1)

from musubi_tuner.dataset import cache_io  # noqa: E402
from musubi_tuner.dataset.image_video_dataset import ItemInfo  # noqa: E402
from musubi_tuner.krea2 import krea2_utils  # noqa: E402
from musubi_tuner.krea2.krea2_mmdit import SingleMMDiTConfig, SingleStreamDiT  # noqa: E402
from musubi_tuner.zimage import zimage_config, zimage_model  # noqa: E402

WIDTH, WORDS, RANK = 128, 32, "4"
TAKEN = 3
"""Hidden states of the text encoder that Krea 2 takes."""
KREA2 = SingleMMDiTConfig(
    features=64, tdim=32, txtdim=WORDS, heads=2, kvheads=1, multiplier=2, layers=3, patch=2, channels=16, txtheads=2,
    txtkvheads=2, txtlayers=TAKEN,
)  # fmt: skip
HELD: dict[str, Any] = {}


LOADERS = {"zimage": (zimage_model, "load_zimage_model"), "krea2": (krea2_utils, "load_krea2_dit")}


def narrow() -> None:
    """The constants of a pico Z-Image."""
    for name, value in {"DIM": WIDTH, "N_LAYERS": 3, "N_REFINER_LAYERS": 1, "N_HEADS": 1, "N_KV_HEADS": 1}.items():
        setattr(zimage_config, f"DEFAULT_TRANSFORMER_{name}", value)
    zimage_config.DEFAULT_TRANSFORMER_CAP_FEAT_DIM = WORDS


def checkpoint(model: torch.nn.Module, path: Path) -> None:
    """A file of random weights, as --dit names it."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shapes = {name: x.shape for name, x in model.state_dict().items()}
    save_file(
        {name: torch.randn(s) * (0.1 if len(s) > 1 else 0.02) + (len(s) == 1) for name, s in shapes.items()}, path
    )


def dataset(folder: Path) -> None:
    """Two pictures' latents and captions, in the caches that its own scripts write, and the dataset's toml."""
    from PIL import Image

    (folder / "pictures").mkdir()
    (folder / "caches").mkdir()
    torch.manual_seed(1)
    for k in range(2):
        Image.effect_noise((128, 128), 60).convert("RGB").save(folder / "pictures" / f"{k}.png")
        (folder / "pictures" / f"{k}.txt").write_text("a b")
        item = ItemInfo(f"{k}.png", "a b", (128, 128), (128, 128))
        item.latent_cache_path = str(folder / "caches" / f"{k}_0128x0128_zi.safetensors")
        item.text_encoder_output_cache_path = str(folder / "caches" / f"{k}_zi_te.safetensors")
        cache_io.save_latent_cache_z_image(item, torch.randn(16, 16, 16))
        cache_io.save_text_encoder_output_cache_z_image(item, torch.randn(5, WORDS))
        item.latent_cache_path = str(folder / "caches" / f"{k}_0128x0128_kr2.safetensors")
        item.text_encoder_output_cache_path = str(folder / "caches" / f"{k}_kr2_te.safetensors")
        cache_io.save_latent_cache_krea2(item, torch.randn(16, 1, 16, 16))
        cache_io.save_text_encoder_output_cache_krea2(item, torch.randn(5, TAKEN, WORDS))
    (folder / "data.toml").write_text(
        f"""[general]
resolution = [128, 128]
caption_extension = ".txt"
batch_size = 1
[[datasets]]
image_directory = "{folder / "pictures"}"
cache_directory = "{folder / "caches"}"
"""
    )


def remember(kind: str) -> None:
    """Hold the model that theirs loads, and its numbers. Swapping blocks asks for CUDA's device, here there is none."""
    torch.cuda.set_device, torch.cuda.current_device = lambda device: None, lambda: 0
    module, name = LOADERS[kind]
    plain = getattr(module, name)

    def load(*arguments: Any, **settings: Any) -> Any:
        HELD["model"] = plain(*arguments, **settings, **({"config": KREA2} if kind == "krea2" else {}))
        return HELD["model"]

    def look() -> None:
        HELD["before"] = stored()
        named = {f"lora_unet_{name.replace('.', '_')}": x for name, x in HELD["model"].named_modules()}
        HELD["weights"] = {name: plainly(x) for name, x in named.items() if getattr(x, "weight", None) is not None}

    setattr(module, name, load)
    sys.path.append(str(SOURCE))  # as theirs does
    before_networks(importlib.import_module(f"networks.lora_{kind}"), look)


def plainly(module: Any) -> Tensor:
    """A layer's weight in float64, times the scales of blocks of inputs where it has such."""
    W = module.weight.detach().double()
    if hasattr(module, "scale_weight"):
        scale = module.scale_weight.double().flatten(1)
        W = W * scale.repeat_interleave(W.shape[1] // scale.shape[1], 1)
    return W


def stored() -> dict[str, Tensor]:
    return {name: numbers(x) for name, x in HELD["model"].state_dict().items()}


def factor_error(file: Path) -> tuple[float, bool]:
    """The largest error of any A in a file against the weights that the trainer held; whether one of these moved."""
    from safetensors.torch import load_file

    saved = load_file(file)
    keys = [key for key in saved if key.endswith("lora_down.weight")]
    error = max(span_error(saved[key].float(), HELD["weights"][key.split(".")[0]]) for key in keys)
    now = stored()
    return error, any(not torch.equal(x, now[name]) for name, x in HELD["before"].items())


def run(module: str, arguments: list[str], place: Path, out: Path) -> dict[str, Any]:
    """One run of their script, with what is the same for all."""
    kind = module.rpartition("_")[2]
    common = {
        "dit": place / f"{kind}.safetensors", "dataset_config": place / "data.toml", "network_module": module,
        "network_dim": RANK, "network_alpha": RANK, "learning_rate": "1e-3", "seed": "1", "max_train_steps": "4",
        "output_dir": out.parent, "output_name": out.name, "optimizer_type": "AdamW", "timestep_sampling": "sigmoid",
        "max_data_loader_n_workers": "0",
    }  # fmt: skip
    line = [word for name, value in common.items() for word in (f"--{name}", str(value))] + ["--sdpa"]
    file = out.with_name(f"{out.name}.safetensors")

    def after() -> Any:
        return factor_error(file)

    return script(SOURCE / f"{kind}_train_network.py", [*line, *arguments], lambda: remember(kind), after)


BF16 = "--mixed_precision bf16"
FP8 = f"{BF16} --fp8_base --fp8_scaled"
NO_PROJECTOR = r"--network_args exclude_patterns=['.*txtfusion\.projector']"
"""Krea 2 mixes the text encoder's states in a layer of one output, which has one direction."""
WAYS = {
    "z-image, float32": "--mixed_precision no",
    "z-image, bf16": BF16,
    "z-image, scaled fp8": FP8,
    "z-image, block swap": f"{BF16} --blocks_to_swap 1",
    "z-image, scaled fp8, swap, checkpointing": f"{FP8} --blocks_to_swap 1 --gradient_checkpointing",
    "z-image, max norm": f"{BF16} --scale_weight_norms 0.002",
    "z-image, exclude patterns": f"{BF16} --network_args exclude_patterns=['.*to_q.*']",
    "z-image, LoRA+": f"{BF16} --network_args loraplus_lr_ratio=4",
    "z-image, network_weights": f"{BF16} --network_weights FIRST",
    "z-image, base_weights": f"{BF16} --base_weights FIRST",
    "krea 2": f"{BF16} {NO_PROJECTOR}",
    "krea 2, scaled fp8": f"{FP8} {NO_PROJECTOR}",
}


def resumed(place: Path) -> tuple[list[float], list[float]]:
    """Losses of an unbroken run, and of one that was stopped after two of four steps and resumed."""
    whole = apart(run, "qrlora.networks.lora_zimage", [], place, place / "whole" / "it")["losses"]
    half = ["--max_train_steps", "2", "--save_state_on_train_end"]
    first = apart(run, "qrlora.networks.lora_zimage", half, place, place / "half" / "it")["losses"]
    state = next((place / "half").glob("*-state"))
    rest = apart(run, "qrlora.networks.lora_zimage", ["--resume", str(state)], place, place / "rest" / "it")["losses"]
    return whole, first + rest[: len(whole) - len(first)]


def main(wanted: list[str]) -> None:
    module = "networks.lora_zimage"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["QRLORA_CACHE"] = str(place / "cache")
        narrow(), dataset(place)
        checkpoint(zimage_model.create_model("torch", False, torch.float32), place / "zimage.safetensors")
        checkpoint(SingleStreamDiT(KREA2).bfloat16(), place / "krea2.safetensors")
        first = place / "out" / "first"
        if not wanted or any("weights" in way for way in wanted):
            apart(run, f"qrlora.{module}", BF16.split(), place, first)
        if not wanted or "resume" in wanted:
            whole, broken = resumed(place)
            same = "bit for bit" if whole == broken else (whole, broken)
            print(f"z-image, resume: losses of the unbroken run {same}", flush=True)

        def one(way: str, ours: bool) -> dict[str, Any]:
            line = WAYS[way].replace("FIRST", f"{first}.safetensors").split()
            out = place / "out" / ("ours" if ours else "theirs")
            named = "networks.lora_krea2" if way.startswith("krea 2") else module
            return apart(run, f"{'qrlora.' if ours else ''}{named}", line, place, out)

        ways(WAYS, wanted, one)


if __name__ == "__main__":
    main(sys.argv[2:])
