"""sd-scripts' own sdxl_train_network.py and flux_train_network.py at pico size on CPU, `networks.X` against
`qrlora.networks.X`, one row a way.

    PYTHONPATH=src PYTHON_OF_SD_SCRIPTS bench/inside/sd_scripts.py FOLDER_OF_SD_SCRIPTS [words of ways]

What loads a checkpoint is replaced by what makes a pico model with random weights; all else is theirs.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from torch import Tensor, nn
from watch import PATIENCE, apart, before_networks, numbers, script, span_error, ways

FOLDER = Path(sys.argv[1]).resolve()
sys.path.insert(0, str(FOLDER))
os.chdir(FOLDER)
torch.set_num_threads(1)

from library import flux_models, flux_utils, sdxl_original_unet, sdxl_train_util  # noqa: E402

WIDTH = 32
RANK = "4"
SPLIT = [64, 64, 64, 256]
"""Outputs of q, k, v and the MLP in a single block of the pico FLUX.1."""
PARTS = ("unet", "te1", "te2")
HELD: dict[str, Any] = {}
"""The models of a run, and the numbers they had."""


def tokenizers(folder: Path) -> None:
    """Tokenizers of a few words, where --tokenizer_cache_dir looks for them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import CLIPTokenizer, T5TokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(x + "</w>" for x in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    clip = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    for name in ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k"):
        clip.save_pretrained(folder / name)
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -9.0),
        *(("▁" + x, -2.0) for x in letters),
        *((x, -2.0) for x in letters),
    ]
    t5 = Tokenizer(models.Unigram(pieces, unk_id=2))
    t5.pre_tokenizer, t5.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    t5.save(str(folder / "t5.json"))
    T5TokenizerFast(tokenizer_file=str(folder / "t5.json"), extra_ids=0).save_pretrained(folder / "google_t5-v1_1-xxl")


def pictures(folder: Path) -> None:
    """Two pictures of noise with captions, as DreamBooth folders."""
    from PIL import Image

    (folder / "1_ab").mkdir(parents=True)
    for k in range(2):
        Image.effect_noise((64, 64), 60 + k).convert("RGB").save(folder / "1_ab" / f"{k}.png")
        (folder / "1_ab" / f"{k}.txt").write_text(f"a b {'cd'[k]}")


def clip(projected: bool) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=60, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=12, num_attention_heads=2,
        projection_dim=WIDTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def sdxl(seed: int = 0) -> None:
    """A pico SDXL where the loader of sdxl_train_util looks: its own UNet class, narrow."""
    from diffusers import AutoencoderKL

    def load(args: Any, accelerator: Any, version: str, dtype: torch.dtype) -> tuple:
        unet_module = sdxl_original_unet
        unet_module.MODEL_CHANNELS, unet_module.TIME_EMBED_DIM = WIDTH, 4 * WIDTH
        unet_module.CONTEXT_DIM, unet_module.ADM_IN_CHANNELS = 2 * WIDTH, WIDTH + 6 * 256
        plain = unet_module.Transformer2DModel.__init__
        narrow = {"cross_attention_dim": 2 * WIDTH}  # theirs says 2048 where it makes them
        unet_module.Transformer2DModel.__init__ = lambda self, **given: plain(self, **given | narrow)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = unet_module.SdxlUNet2DConditionModel()
            first, second = clip(False), clip(True)
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8,) * 4, norm_num_groups=8, latent_channels=4, layers_per_block=1,
            )  # fmt: skip
        HELD.update(unet=unet, te1=first, te2=second)
        unet.to(dtype), first.to(dtype), second.to(dtype)
        return True, first, second, vae, unet, None, None

    sdxl_train_util.load_target_model = load


def flux(seed: int = 0) -> None:
    """A pico FLUX.1 where the loaders of flux_utils look."""
    from transformers import T5Config, T5EncoderModel

    sizes = dict(
        in_channels=64, vec_in_dim=WIDTH, context_in_dim=WIDTH, hidden_size=64, mlp_ratio=4.0, num_heads=2, depth=3,
        depth_single_blocks=4, axes_dim=[4, 14, 14], theta=10_000, qkv_bias=True, guidance_embed=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = flux_models.Flux(flux_models.FluxParams(**sizes))
    with torch.no_grad():
        for x in model.parameters():
            x.normal_(std=0.2) if x.ndim > 1 else x.normal_(std=0.02)
    t5 = T5EncoderModel(T5Config(vocab_size=60, d_model=WIDTH, d_kv=16, d_ff=WIDTH, num_layers=1, num_heads=2))
    parameters = flux_models.AutoEncoderParams(64, 3, 32, 3, [1, 1, 1, 1], 1, 16, 0.36, 0.11)
    words = clip(False)
    HELD.update(unet=model)

    def load(path: str, dtype: torch.dtype | None, *args: Any, **kwargs: Any) -> tuple:
        return False, model.to(dtype or torch.float32)

    flux_utils.load_flow_model = load
    flux_utils.load_clip_l = lambda path, dtype, *args, **kwargs: words.to(dtype)
    flux_utils.load_t5xxl = lambda path, dtype, *args, **kwargs: t5.to(dtype or torch.float32)
    flux_utils.load_ae = lambda path, dtype, *args, **kwargs: flux_models.AutoEncoder(parameters).to(dtype)
    flux_utils.analyze_checkpoint_state = lambda path: (False, False, (3, 4), [])
    import networks.lora_flux

    networks.lora_flux.LoRANetwork.get_qkv_mlp_split_dims = classmethod(lambda cls: SPLIT)


def remember() -> None:
    HELD["before"] = held()
    named = {
        f"lora_{part}_{k.replace('.', '_')}": x for part in PARTS if part in HELD for k, x in HELD[part].named_modules()
    }
    HELD["weights"] = {
        name: x.weight.detach().clone() for name, x in named.items() if getattr(x, "weight", None) is not None
    }


def held() -> dict[str, dict[str, Tensor]]:
    """The numbers of all models, as they were stored."""
    return {part: {k: numbers(x) for k, x in HELD[part].state_dict().items()} for part in PARTS if part in HELD}


def factor_error(file: Path, split: bool) -> tuple[float, bool]:
    """The largest error of any A in a file against the weights that the trainer held; whether one of these moved."""
    from safetensors.torch import load_file

    saved, error = load_file(file), 0.0
    for key in [key for key in saved if key.endswith("lora_down.weight")]:
        name = key.split(".")[0]
        A, B = saved[key].float(), saved[key.replace("down", "up")]
        W = HELD["weights"][name].float().flatten(1)
        parts = W.split(SPLIT) if split and W.shape[0] == sum(SPLIT) else [W]
        error = max([error, *(span_error(a, w) for a, w in zip(A.split(len(A) // len(parts)), parts, strict=True))])
        assert B.shape[0] == len(W)
    now = held()
    return error, any(
        not torch.equal(x, now[name][k]) for name, held in HELD["before"].items() for k, x in held.items()
    )


def run(kind: str, module: str, arguments: list[str], place: Path, out: Path) -> dict[str, Any]:
    """One run of a script, with what is the same for all."""
    common = {
        "pretrained_model_name_or_path": "pico", "train_data_dir": place / "pictures", "resolution": "64,64",
        "network_module": module, "network_dim": RANK, "network_alpha": RANK, "learning_rate": "1e-3", "seed": "1",
        "max_train_steps": "6", "output_dir": out.parent, "output_name": out.name, "save_model_as": "safetensors",
        "optimizer_type": "AdamW", "tokenizer_cache_dir": place, "max_data_loader_n_workers": "0",
        "save_precision": "float",
    }  # fmt: skip
    line = [word for name, value in common.items() for word in (f"--{name}", str(value))]
    if kind == "flux":
        line += "--clip_l x --t5xxl x --ae x --t5xxl_max_token_length 16 --model_prediction_type raw".split()
        line += "--guidance_scale 1 --timestep_sampling sigmoid".split()
        line += "--network_train_unet_only --cache_text_encoder_outputs".split()
    patch = {"sdxl": sdxl, "flux": flux}[kind]
    file = out.with_name(f"{out.name}.safetensors")
    name = {"sdxl": "sdxl_train_network.py", "flux": "flux_train_network.py"}[kind]
    before_networks(importlib.import_module(module.removeprefix("qrlora.")), remember)
    split = any("split_qkv" in word for word in arguments)

    def after() -> Any:  # the first of several processes writes the file
        return factor_error(file, split) if os.environ.get("RANK", "0") == "0" else None

    return script(FOLDER / name, [*line, *arguments], patch, after)


UNET = "--network_train_unet_only"
TWO = "sdxl, two processes"
BLOCKS = ",".join("2" * 11 + "4" * 12)
WAYS: dict[str, tuple[str, str]] = {
    "sdxl, both text encoders": ("sdxl", ""),
    "sdxl, UNet alone": ("sdxl", UNET),
    "sdxl, text encoders alone": ("sdxl", "--network_train_text_encoder_only"),
    "sdxl, gradient checkpointing": ("sdxl", f"{UNET} --gradient_checkpointing"),
    "sdxl, bf16": ("sdxl", f"{UNET} --mixed_precision bf16"),
    "sdxl, full bf16": ("sdxl", f"{UNET} --mixed_precision bf16 --full_bf16"),
    "sdxl, max norm": ("sdxl", f"{UNET} --scale_weight_norms 0.002"),
    "sdxl, convolutions": ("sdxl", f"{UNET} --network_args conv_dim=4 conv_alpha=4"),
    "sdxl, all dropouts": ("sdxl", f"{UNET} --network_dropout 0.1 --network_args rank_dropout=0.1 module_dropout=0.1"),
    "sdxl, LoRA+": ("sdxl", f"{UNET} --network_args loraplus_lr_ratio=4"),
    "sdxl, ranks by block": ("sdxl", f"{UNET} --network_args block_dims={BLOCKS} block_alphas={BLOCKS}"),
    "sdxl, accumulation": ("sdxl", f"{UNET} --gradient_accumulation_steps 2"),
    "sdxl, network_weights": ("sdxl", f"{UNET} --network_weights FIRST"),
    "sdxl, dim_from_weights": ("sdxl", f"{UNET} --network_weights FIRST --dim_from_weights"),
    "sdxl, base_weights": ("sdxl", f"{UNET} --base_weights FIRST"),
    TWO: ("sdxl", UNET),
    "flux": ("flux", ""),
    "flux, bf16": ("flux", "--mixed_precision bf16"),
    "flux, fp8 base": ("flux", "--mixed_precision bf16 --fp8_base"),
    "flux, block swap": ("flux", "--blocks_to_swap 2"),
    "flux, gradient checkpointing": ("flux", "--gradient_checkpointing"),
    "flux, split qkv of single blocks": ("flux", "--network_args split_qkv=True train_blocks=single"),
    "flux, ranks by regex": ("flux", "--network_args network_reg_dims=.*single.*=2"),
    "flux, in_dims": ("flux", "--network_args in_dims=[4,4,4,4,4]"),
}  # fmt: skip


def main(wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["QRLORA_CACHE"] = str(place / "cache")
        tokenizers(place), pictures(place / "pictures")
        module = {"sdxl": "networks.lora", "flux": "networks.lora_flux"}
        first = place / "out" / "first"
        if not wanted or any("weights" in way for way in wanted):
            apart(run, "sdxl", "qrlora.networks.lora", [UNET], place, first)
        if not wanted or "refused" in wanted:
            refused(place)
        if not wanted or "resume" in wanted:
            for name in ("qrlora.networks.lora", "networks.lora"):
                whole, broken = resumed(name, place)
                same = "bit for bit" if whole == broken else (whole, broken)
                print(f"sdxl, {name}, resume: losses of the unbroken run {same}", flush=True)

        def one(way: str, ours: bool) -> dict[str, Any]:
            kind, words = WAYS[way]
            line = words.replace("FIRST", f"{first}.safetensors").split()
            out = place / "out" / ("ours" if ours else "theirs")
            named = f"{'qrlora.' if ours else ''}{module[kind]}"
            return two_processes(named, line, place, out) if way == TWO else apart(run, kind, named, line, place, out)

        ways(WAYS, wanted, one)


def resumed(module: str, place: Path) -> tuple[list[float], list[float]]:
    """Losses of an unbroken run, and of one that was stopped after two of six steps, an epoch, and resumed."""
    out = place / "resumed" / module
    whole = apart(run, "sdxl", module, [UNET], place, out / "whole")["losses"]
    half = [UNET, "--max_train_steps", "2", "--save_state_on_train_end"]
    first = apart(run, "sdxl", module, half, place, out / "half")["losses"]
    state = [UNET, "--resume", str(out / "half-state"), "--skip_until_initial_step"]
    return whole, first + apart(run, "sdxl", module, state, place, out / "rest")["losses"]


def two_processes(module: str, arguments: list[str], place: Path, out: Path) -> dict[str, Any]:
    """A run in two processes on the CPU, each with this script's `process`, started by torchrun as `accelerate launch`
    does on GPUs; on CPUs it would ask for MPI.

    Returns: what the first one has seen. Raises RuntimeError: one failed, or their networks differ at the end.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
    words = [__file__, str(FOLDER), "process", module, str(place), str(out), *arguments]
    cpu = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*torchrun, *words], env=cpu, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise RuntimeError(done.stderr)
    results = [json.loads(out.with_suffix(f".{rank}.json").read_text()) for rank in range(2)]
    if results[0]["network"] != results[1]["network"] or results[0]["losses"] == results[1]["losses"]:
        raise RuntimeError(f"the processes' networks are not the same, or their pictures are: {results}")
    return results[0]


def process(module: str, place: str, out: str, *arguments: str) -> None:
    """One of several processes: its run, results in a file beside the adapter."""
    from accelerate import Accelerator

    plain = Accelerator.prepare_model

    def prepared(self: Any, model: nn.Module, **settings: Any) -> nn.Module:
        """Theirs, which puts DDP around a frozen UNet on CPUs, where DDP refuses it, and does not on GPUs."""
        frozen = not any(x.requires_grad for x in model.parameters())
        result = plain(self, model, **settings | ({"evaluation_mode": True} if frozen else {}))
        HELD.update({"network": result} if hasattr(model, "unet_loras") else {})
        return result

    Accelerator.prepare_model = prepared
    results = run("sdxl", module, list(arguments), Path(place), Path(out))
    digest = hashlib.sha256()
    for x in HELD["network"].state_dict().values():
        digest.update(x.detach().numpy().tobytes())
    path = Path(out).with_suffix(f".{os.environ['RANK']}.json")
    path.write_text(json.dumps(results | {"network": digest.hexdigest()}))


def refused(place: Path) -> None:
    """What must not be trained, and what is said of it."""
    free = place / "out" / "free"
    apart(run, "sdxl", "networks.lora", [UNET], place, free)
    for module, words in {
        "qrlora.networks.lora": f"{UNET} --network_weights {free}.safetensors",
        "qrlora.networks.oft": UNET,
        "qrlora.networks.dylora": UNET,
    }.items():
        try:
            apart(run, "sdxl", module, words.split(), place, place / "out" / "no")
            raise SystemExit(f"{module} {words}: was not refused")
        except RuntimeError as error:
            print(f"{module} refused: {str(error).strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    process(*sys.argv[3:]) if sys.argv[2:3] == ["process"] else main(sys.argv[2:])
