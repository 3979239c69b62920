"""FUSIONS: every way to bring a content and a style together, the paper's and those that it is compared with."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from ..injection.peft_methods import PREFIX, parse_peft_method
from ..merging import merge
from .adapter_schedules import composed, k_lora, planned, switch
from .b_lora import b_lora
from .fusion_method import FusionInputs, FusionMethod, FusionResult, static
from .style_aligned import fuse as style_aligned
from .ziplora import ziplora


def merged(rule: str) -> Callable[[FusionInputs], FusionResult]:
    """Task -> the merge of both adapters at the task's weights by a row of merging.RULES."""
    return lambda task: static(task.base, merge(task.both, task.weights, rule))


def ortha(task: FusionInputs) -> FusionResult:
    """The sum of two adapters of different slots. Raises ValueError: of one slot, so that they are not orthogonal."""
    slots = [adapter.header.config.get("slot") for adapter in task.both]
    if slots[0] == slots[1]:
        raise ValueError(f"both adapters have slot {slots[0]} of the orthogonal basis: learn them with different ones")
    return merged("stack")(task)


LORA = {"method": "lora"}
BY_ROLE = {"content": {"method": "qr-contrast"}, "style": {"method": "qr"}}

FUSIONS: dict[str, FusionMethod] = {
    fusion.name: fusion
    for fusion in (
        FusionMethod("qr", "arXiv 2507.04599, eq. 5-7", {"method": "qr"}, merged("sum")),
        FusionMethod("qr-output", "arXiv 2507.04599, the authors' code", {"method": "qr-output"}, merged("sum")),
        FusionMethod(
            "qr-triangular", "arXiv 2507.04599, the authors' code", {"method": "qr-triangular"}, merged("sum")
        ),
        FusionMethod("qr-direct", "arXiv 2507.04599, section 4.3", {"method": "qr-direct"}, merged("stack")),
        FusionMethod("qr-contrast", "docs/findings.md", {"method": "qr-contrast"}, merged("stack")),
        FusionMethod("qr-by-role", "docs/findings.md", BY_ROLE, merged("stack")),
        FusionMethod("qr-minor", "qr on the directions of arXiv 2406.09044", {"method": "qr-minor"}, merged("sum")),
        FusionMethod("lora", "arXiv 2106.09685, the sum of the updates", LORA, merged("stack")),
        FusionMethod("lora-plain", "PEFT's and kohya's linear merge, A and B apart", LORA, merged("peft-linear")),
        FusionMethod("ortha", "arXiv 2312.02432", {"method": "ortha"}, ortha),  # its slots follow the roles
        FusionMethod("pissa", "arXiv 2404.02948", {"method": "pissa"}, merged("stack")),
        FusionMethod("olora", "arXiv 2406.01775", {"method": "olora"}, merged("stack")),
        FusionMethod("dora", "arXiv 2402.09353, as PEFT has it", {"method": "peft:dora"}, merged("stack")),
        FusionMethod("oft", "arXiv 2306.07280, as PEFT has it", {"method": "peft:oft"}, merged("stack")),
        FusionMethod("ties", "arXiv 2306.01708", LORA, merged("ties")),
        FusionMethod("dare", "arXiv 2311.03099", LORA, merged("dare")),
        FusionMethod("knots", "arXiv 2410.19735", LORA, merged("knots")),
        # at 5e-5 for 100 steps Adam moves a coefficient by 0.005 at most: the direct merge in another name
        FusionMethod("ziplora-published", "arXiv 2311.13600, the public code's setting", LORA, ziplora(5e-5)),
        FusionMethod("ziplora", "arXiv 2311.13600, with coefficients that move", LORA, ziplora(1e-2)),
        FusionMethod("b-lora", "arXiv 2403.14572", {**LORA, "targets": "b-lora"}, b_lora, ("sdxl",)),
        FusionMethod("style-aligned", "arXiv 2312.02133", LORA, style_aligned, ("sdxl",), learns_style=False),
        FusionMethod("k-lora", "arXiv 2502.18461, eq. of the paper", LORA, planned(k_lora)),
        FusionMethod("k-lora-code", "arXiv 2502.18461, its code", LORA, planned(partial(k_lora, alternating=True))),
        FusionMethod("lora-switch", "arXiv 2402.16843", LORA, planned(switch)),
        FusionMethod("lora-composite", "arXiv 2402.16843", LORA, composed),
    )
}


def fusion(name: str) -> FusionMethod:
    """A row of FUSIONS; or, by "peft:KIND", the exact sum of two adapters that any method of PEFT's has learnt.

    Raises: ValueError: neither, or a method of PEFT's that cannot learn here.
    """
    if name.startswith(PREFIX):
        return FusionMethod(name, "PEFT", {"method": PREFIX + parse_peft_method(name)}, merged("stack"))
    if name not in FUSIONS:
        near = difflib.get_close_matches(name, FUSIONS, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FUSIONS)} and peft:KIND"
        raise ValueError(f"no method {name!r}; {known}")
    return FUSIONS[name]
