"""PEFT's configuration in or beside a LoRA file: each layer's scale (lora_alpha, alpha_pattern, rsLoRA), and whether it
starts within the weight (init_lora_weights).

PEFT and diffusers write LoraConfig's fields beside or into a file. Most of its switches change how a LoRA learns and
leave the update s B A; those that do not are refused by name. Some starts are taken off the base's weight, which is
then W - s B_0 A_0: of such a LoRA the update of W is s (B A - B_0 A_0), 4 to 20 times less than s B A.
Letters: o outputs, i inputs, r rank, A (r, i), B (o, r), W (o, i), s the scale.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import optional_dependencies
from ..adapter import Pair
from ..json_objects import parse_json_object, read_json_object
from ..lora_keys import PEFT_PREFIX

BESIDE = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica", "default", "kaiming")
"""Starts that leave the base's weight as it is (peft 0.21: tuners/lora/layer.py; the last two are kohya's words)."""
BY_DATA = {
    "corda": "its start hangs on data that the file does not hold",
    "lora_ga": "its start hangs on gradients that the file does not hold",
    "pissa_niter": "its start hangs on random numbers that the file does not hold",
}
"""Starts within the weight that cannot be computed again, by the beginning of the name: why. Of a weight of tiny-sdxl
two starts of pissa_niter_16 differ by 4 % of their size, which is as much as a short run learns."""
PLAIN = frozenset(
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules "
    "exclude_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora modules_to_save init_lora_weights "
    "layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_config megatron_core "
    "trainable_token_indices loftq_config eva_config corda_config lora_ga_config velora_config qalora_group_size "
    "runtime_config ensure_weight_tying".split()
)
"""LoraConfig's fields that leave the update s B A, or that show in the file's keys. VeLoRA changes gradients alone."""
KOHYA_ARGUMENTS = ("initialize", "init_lora_weights", "lora_init_type")
"""How forks of kohya's trainer call the start in ss_network_args."""
LONGEST, SECONDS = 1000, 5.0
"""Of a pattern: characters, and how long all of them may search. A layer's name takes a microsecond."""


@dataclass(frozen=True)
class Config:
    """What is needed of a LoraConfig."""

    alpha: float | None = None
    """None: none was given, so the scale is 1."""
    alphas: tuple[tuple[Any, float], ...] = ()
    """(compiled pattern, alpha): the first one that matches a layer's end counts."""
    spent: list[float] = field(default_factory=list)
    """Seconds that the patterns have searched, by layer."""
    rslora: bool = False
    start: str = ""
    """The start within the weight, as the file calls it; "" where it lies beside it."""

    def scale(self, layer: str, rank: int) -> float:
        """PEFT's scale of a layer: alpha / r, or alpha / sqrt(r) for rsLoRA; 1 without alpha.

        Raises: ValueError: a pattern that does not come to an end.
        """
        if self.alpha is None:
            return 1.0
        begun, left = time.perf_counter(), SECONDS - sum(self.spent)
        try:
            found = (alpha for pattern, alpha in self.alphas if pattern.match(layer, timeout=max(left, 1e-3)))
            alpha = next(found, self.alpha)
        except TimeoutError as error:
            raise ValueError(f"its alpha_pattern searches for more than {SECONDS:g} s, last in {layer!r}") from error
        self.spent.append(time.perf_counter() - begun)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_peft_config(path: Path, keys: Mapping[str, Any], metadata: Mapping[str, str], component: str) -> Config:
    """Read what PEFT, diffusers or kohya's forks wrote about a file's strength, of which `keys` are the names of its
    tensors.

    Raises: ValueError: PEFT's adapter_config.json is missing; not readable; a setting that makes of the file more than
            s B A, naming it.
    """
    if any(key.startswith(PEFT_PREFIX) for key in keys):
        beside = path.with_name("adapter_config.json")
        try:
            entries = read_json_object(beside)
        except FileNotFoundError as error:
            raise ValueError(f"a PEFT file keeps its strength in {beside}, which is missing; put it there") from error
    else:
        given = parse_json_object(metadata.get("lora_adapter_metadata", "{}"), "lora_adapter_metadata")
        entries = {name.removeprefix(f"{component}."): value for name, value in given.items()}
        entries = {name: value for name, value in entries.items() if "." not in name}  # the rest is of text encoders
    if not entries:
        arguments = parse_json_object(metadata.get("ss_network_args") or "{}", "ss_network_args")
        return Config(
            start=_parse_init_lora_weights(next((arguments[x] for x in KOHYA_ARGUMENTS if x in arguments), True))
        )
    _refuse_other_than_plain_lora(entries)
    alpha, patterns = entries.get("lora_alpha"), entries.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"alpha_pattern must be {{layer: alpha}}, got {patterns!r:.80}")
    return Config(
        alpha=None if alpha is None else finite_number(alpha, "lora_alpha"),
        alphas=tuple(
            (_compile_alpha_pattern(x), finite_number(value, f"alpha_pattern of {x:.80}"))
            for x, value in patterns.items()
        ),
        rslora=bool(entries.get("use_rslora")),
        start=_parse_init_lora_weights(entries.get("init_lora_weights", True)),
    )


def finite_number(value: Any, name: str) -> float:
    """A number of PEFT's configuration, finite. Raises ValueError, naming it: something else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise ValueError(f"{name} must be a finite number, got {value!r:.80}")
    return float(value)


def refusal(start: str) -> str:
    """Why a LoRA that starts within the weight is not read without the base, and the hint."""
    what = f"init_lora_weights={start!r}: its start lies within the weight, so that it is no update of the base"
    return f"{what}; qrlora convert IN OUT --base BASE takes it off, or load(..., weights=...)"


def subtract_peft_start(
    layers: Mapping[str, Pair], start: str, scales: Mapping[str, float], weights: Callable[[str], Tensor]
) -> dict[str, Pair]:
    """Take PEFT's start (init_lora_weights) off a LoRA: [A; A_0] and [s B, -s B_0] at rank 2r update the base's
    weights.

    PiSSA (arXiv 2404.02948): s B_0 A_0 is the best rank-r copy of W.  OLoRA (arXiv 2406.01775): B_0 and A_0 are the
    first r columns and rows of W's QR.

    Args:   layers: {layer: (A, s B)}.  start: "pissa" or "olora", in any case.  scales: {layer: s}.
            weights: (layer) -> W, as it was before PEFT took the start off it.
    Raises: ValueError: a weight of another shape; what is left is not less than what was there, as with another base.
    """
    updates, before, after = {}, 0.0, 0.0
    for layer, pair in layers.items():
        weight = weights(layer).detach().cpu().float()
        if tuple(weight.shape) != pair.shape:
            shape = tuple(weight.shape)
            raise ValueError(f"{layer}: the LoRA is for a weight {pair.shape}, the base's is {shape}: another base")
        A, B = _start_factors(weight, pair.rank, start.lower(), scales[layer])
        updates[layer] = Pair(torch.cat([pair.A, A]), torch.cat([pair.B, -B], 1))
        before, after = before + pair.squared_norm, after + updates[layer].squared_norm
    if not after < before:
        left = math.sqrt(after / before) if before else math.inf
        raise ValueError(
            f"init_lora_weights={start!r}: without its start it would be {left:.3g} times as large as with it: "
            "it began in another base, or has been converted before"
        )
    return updates


def _start_factors(weight: Tensor, rank: int, start: str, scale: float) -> tuple[Tensor, Tensor]:
    """A_0 (r, i) and s B_0 (o, r) with which PEFT's PiSSA or OLoRA starts on a weight."""
    if start == "pissa":
        U, S, V = torch.linalg.svd(weight, full_matrices=False)
        return V[:rank], U[:, :rank] * S[:rank]
    Q, R = torch.linalg.qr(weight)
    return R[:rank], scale * Q[:, :rank]


def _parse_init_lora_weights(value: Any) -> str:
    """PEFT's start within the weight, "" for one beside it. Raises ValueError: it cannot be computed, or unknown."""
    name = str(value).lower()
    if name in BESIDE:
        return ""
    if name in ("pissa", "olora"):
        return str(value)
    what = f"init_lora_weights={value!r:.80}"
    why = next((why for kind, why in BY_DATA.items() if name.startswith(kind)), None)
    if why:
        hint = "save_pretrained(..., path_initial_model_for_weight_conversion=...) of PEFT writes a plain LoRA"
        raise ValueError(f"{what}: its start lies within the weight, and {why}; {hint}")
    if name == "loftq":
        raise ValueError(
            f"{what}: it is an update of weights that were quantised for it, not of the base; merge it there"
        )
    raise ValueError(f"{what}: a start that qrlora does not know, so that it may lie within the weight")


def _refuse_other_than_plain_lora(entries: Mapping[str, Any]) -> None:
    """Raises ValueError, naming it: PEFT's configuration is of another kind of adapter, or has a setting beyond PLAIN
    on."""
    kind = entries.get("peft_type") or "LORA"
    if kind != "LORA":
        raise ValueError(f"peft_type={kind!r:.80}: qrlora reads plain LoRA files, no DoRA, LoHa, LoKr or others")
    for name in sorted(entries.keys() - PLAIN):
        if entries[name]:
            raise ValueError(
                f"{name:.80}={entries[name]!r:.80}: its update is not B A alone; qrlora reads plain LoRA files"
            )


def _compile_alpha_pattern(pattern: str) -> Any:
    """PEFT's pattern of a layer's end. Raises ValueError: too long, or no regular expression."""
    if len(pattern) > LONGEST:
        raise ValueError(f"an alpha_pattern of {len(pattern)} characters, {LONGEST} are read: {pattern[:80]!r}...")
    optional_dependencies.require("cli", "regex", reason="alpha_pattern")
    import regex

    try:
        return regex.compile(rf"(.*\.)?({pattern})$")
    except regex.error as error:
        raise ValueError(f"alpha_pattern {pattern!r:.80} is no regular expression: {error}") from error
