"""FUSIONS: the table of all methods that fuse content and style, the paper's and those it is compared with."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ..initialisation_methods import METHODS
from ..injection.peft_methods import PREFIX, parse_peft_method
from ..merging import merge
from ..merging.merge_adapters import find_rule
from .adapter_schedules import composite_fusion, k_lora_schedule, scheduled_fusion, switch_schedule
from .b_lora import b_lora
from .fusion_method import FusionInputs, FusionMethod, FusionResult, sample_with_adapter
from .style_aligned import fuse_style_aligned
from .ziplora import ziplora


def merge_by_rule(rule: str) -> Callable[[FusionInputs], FusionResult]:
    """A fusion method that merges both adapters with their weights by a row of merging.RULES."""
    return lambda task: sample_with_adapter(task.base, merge(task.both, task.weights, rule))


def ortha(task: FusionInputs) -> FusionResult:
    """A row of the table, Orthogonal Adaptation: the sum of two adapters of different slots. Raises ValueError: equal
    slots, so that they are not orthogonal."""
    slots = [adapter.header.config.get("slot") for adapter in task.both]
    if slots[0] == slots[1]:
        raise ValueError(f"both adapters have slot {slots[0]} of the orthogonal basis: train them with different ones")
    return merge_by_rule("stack")(task)


RULE = ":rule="
"""In a name, between a method whose adapters are merged and the merging rule: "qr:rule=ties"."""
LORA = {"method": "lora"}
BY_ROLE = {"content": {"method": "qr-contrast"}, "style": {"method": "qr"}}

FUSIONS: dict[str, FusionMethod] = {
    fusion.name: fusion
    for fusion in (
        FusionMethod("qr", "arXiv 2507.04599, eq. 5-7", {"method": "qr"}, merge_by_rule("sum")),
        FusionMethod("qr-output", "arXiv 2507.04599, the authors' code", {"method": "qr-output"}, merge_by_rule("sum")),
        FusionMethod(
            "qr-triangular", "arXiv 2507.04599, the authors' code", {"method": "qr-triangular"}, merge_by_rule("sum")
        ),
        FusionMethod("qr-direct", "arXiv 2507.04599, section 4.3", {"method": "qr-direct"}, merge_by_rule("stack")),
        FusionMethod(
            "qr-contrast", "docs/findings_first_edition.md", {"method": "qr-contrast"}, merge_by_rule("stack")
        ),
        FusionMethod("qr-by-role", "docs/findings_first_edition.md", BY_ROLE, merge_by_rule("stack")),
        FusionMethod(
            "qr-minor", "qr on the directions of arXiv 2406.09044", {"method": "qr-minor"}, merge_by_rule("sum")
        ),
        FusionMethod("lora", "arXiv 2106.09685, the sum of the updates", LORA, merge_by_rule("stack")),
        FusionMethod(
            "lora-plain", "PEFT's and kohya's linear merge, A and B apart", LORA, merge_by_rule("peft-linear")
        ),
        FusionMethod("ortha", "arXiv 2312.02432", {"method": "ortha"}, ortha),  # its slots follow the roles
        FusionMethod("pissa", "arXiv 2404.02948", {"method": "pissa"}, merge_by_rule("stack")),
        FusionMethod("olora", "arXiv 2406.01775", {"method": "olora"}, merge_by_rule("stack")),
        FusionMethod("dora", "arXiv 2402.09353, as PEFT has it", {"method": "peft:dora"}, merge_by_rule("stack")),
        FusionMethod("oft", "arXiv 2306.07280, as PEFT has it", {"method": "peft:oft"}, merge_by_rule("stack")),
        FusionMethod("ties", "arXiv 2306.01708", LORA, merge_by_rule("ties")),
        FusionMethod("dare", "arXiv 2311.03099", LORA, merge_by_rule("dare")),
        FusionMethod("knots", "arXiv 2410.19735", LORA, merge_by_rule("knots")),
        # at 5e-5 for 100 steps Adam moves a coefficient by 0.005 at most: the direct merge in another name
        FusionMethod("ziplora-published", "arXiv 2311.13600, the public code's setting", LORA, ziplora(5e-5)),
        FusionMethod("ziplora", "arXiv 2311.13600, with coefficients that move", LORA, ziplora(1e-2)),
        FusionMethod("b-lora", "arXiv 2403.14572", {**LORA, "targets": "b-lora"}, b_lora, ("sdxl",)),
        FusionMethod(
            "style-aligned", "arXiv 2312.02133", LORA, fuse_style_aligned, ("sdxl",), trains_style_adapter=False
        ),
        FusionMethod("k-lora", "arXiv 2502.18461, eq. of the paper", LORA, scheduled_fusion(k_lora_schedule)),
        FusionMethod(
            "k-lora-code",
            "arXiv 2502.18461, its code",
            LORA,
            scheduled_fusion(partial(k_lora_schedule, alternating=True)),
        ),
        FusionMethod("lora-switch", "arXiv 2402.16843", LORA, scheduled_fusion(switch_schedule)),
        FusionMethod("lora-composite", "arXiv 2402.16843", LORA, composite_fusion),
    )
}


def fusion(name: str) -> FusionMethod:
    """The fusion method of a name: a row of FUSIONS; one of METHODS alone, whose adapters are added; "peft:KIND" for
    the exact sum of two adapters of PEFT's KIND; or "METHOD:rule=RULE" for two adapters of METHOD, merged by a row of
    merging.RULES.

    Raises: ValueError: no such method or rule, or one of PEFT's that cannot be trained here.
    """
    if RULE in name:
        return _merged_by_rule(name)
    if name.startswith(PREFIX):
        return FusionMethod(name, "PEFT", {"method": PREFIX + parse_peft_method(name)}, merge_by_rule("stack"))
    if name in METHODS and name not in FUSIONS:
        method = METHODS[name]
        rule = merge_by_rule("sum" if method.frozen and method.shares_basis else "stack")
        return FusionMethod(name, method.paper, {"method": name}, rule)
    if name not in FUSIONS:
        near = difflib.get_close_matches(name, FUSIONS, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FUSIONS)} and peft:KIND"
        raise ValueError(f"no method {name!r}; {known}")
    return FUSIONS[name]


def _merged_by_rule(name: str) -> FusionMethod:
    """The fusion method "METHOD:rule=RULE". Raises: ValueError: as `fusion`, or a rule that cannot merge METHOD's
    adapters."""
    method, _, rule = name.partition(RULE)
    rule, _ = find_rule(rule)
    if method not in METHODS and not method.startswith(PREFIX):
        raise ValueError(f"{name}: a rule merges adapters of {', '.join(METHODS)} or peft:KIND, not of {method!r}")
    if rule == "sum" and not (method in METHODS and METHODS[method].frozen):
        raise ValueError(f"{name}: {method} trains both factors, which have no sum: take rule=stack, the updates' sum")
    return replace(fusion(method), name=name, fuse=merge_by_rule(rule))


def method_of_adapters(name: str) -> str:
    """The first fusion method whose adapters are trained as those of ``name`` are: "lora" of "ties", "qr" of
    "qr:rule=ties". Raises: ValueError: no such method."""
    learn = fusion(name).learn
    return next((x.name for x in FUSIONS.values() if x.learn == learn), name.partition(RULE)[0])
