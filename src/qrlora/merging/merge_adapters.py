"""RULES: how adapters of one base model become one adapter.

Letters: o outputs, i inputs, r rank, w the weight of an adapter in the merge.

`sum` and `stack` give sum_k w_k B_k A_k. `peft-linear`, which is PEFT's and kohya's "linear" merge, does not: it weighs
and adds A and B separately, which for two adapters of one basis is twice the update at weights (1, 1). `ties`, `dare`
and `knots` work on the updates B A themselves.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..adapter import Adapter, Header
from ..basis import Basis, same_base
from ..config.type_checks import ADAPTER_HINT, check_instance, check_strengths
from ..initialisation_methods import METHODS
from .rule_parameters import check_parameters
from .sources import sources
from .sum_and_stack import Merged, add, peft_linear, stack
from .ties_dare_knots import dare, knots, ties

SHARED_ENTRIES = ("family", "component", "base")
"""Entries that the headers of adapters to merge agree on, as far as each has them."""


def merge(adapters: Sequence[Adapter], weights: Sequence[float], rule: str = "sum", **parameters: Any) -> Adapter:
    """One adapter whose update is the weighted sum of the adapters' updates.

    Args:    adapters: one or more; a layer may be missing in some.  weights: one finite number each,
             0 and negative ones too.  rule: a name of RULES.
             parameters: of the rule: density=0.3 of "ties" and "knots", drop=0.9 and seed=0 of "dare".
    Returns: an adapter of role "merged"; header.parents are the headers of all that went into it, see
             `sources.sources`; header.config has the rule's own settings, by adapter "weights" and "kept_energy" (None:
             the rule's result is no sum of the updates), and what a truncation lost.
    Raises:  ValueError: no adapters, wrong count of weights, unknown rule or parameter of it, another family or
             base model, layers of another shape, and what the rule refuses.
    """
    for name, values in (("adapters", adapters), ("weights", weights)):
        check_instance(name, values, Sequence, "a list, with a weight for each adapter")
    for adapter in adapters:
        check_instance("each adapter", adapter, Adapter, ADAPTER_HINT)
    if not adapters or len(adapters) != len(weights):
        raise ValueError(f"a merge needs one weight for each adapter, got {len(adapters)} adapters, weights {weights}")
    check_strengths(weights, "weights")
    if rule in OLD_RULES:
        message = f"rule={rule!r} is now {OLD_RULES[rule]!r}; the old name goes with 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
    rule, function = find_rule(rule)
    check_parameters(rule, function, parameters)
    for other in adapters[1:]:
        _check_same_base(adapters[0], other)
    merged = function(adapters, weights, **parameters)
    return Adapter(merged.layers, _merged_header(adapters, weights, rule, merged))


def find_rule(name: str) -> tuple[str, Callable[..., Merged]]:
    """The name of today and the function of a merging rule. Raises ValueError: no such rule."""
    name = OLD_RULES.get(name, name)
    if name not in RULES:
        raise ValueError(f"no merging rule {name!r}; choose one of {', '.join(RULES)}")
    return name, RULES[name]


def project(adapter: Adapter, basis: Basis, base: Header) -> tuple[Adapter, dict[str, float]]:
    """An adapter of any method, written in a base's basis: the nearest that merges with ours at the basis' rank.

    Least squares, see Adapter.in_basis. A LoRA that was trained freely may lie mostly outside the leading directions of
    the weights: the shares are the fractions of its squared norm kept.

    Args:    basis: of the adapter's layers.  base: family, component, name and fingerprint of the model it is of.
    Returns: the adapter, of method "qr" or "qr-output", and by layer the kept share of |B A|^2, 0..1.
    Raises:  ValueError: an adapter of another family, component, base; a layer that is not in the basis, or of another
             size.
    """
    for name in ("family", "component"):
        here, there = getattr(adapter.header, name), getattr(base, name)
        if here and here != there:
            raise ValueError(f"the adapter's {name} is {here!r}, that of {base.base} is {there!r}: choose its own base")
    if not same_base(adapter.header.fingerprint, base.fingerprint):
        raise ValueError(f"the adapter was trained on {adapter.header.base!r}, whose weights differ from {base.base!r}")
    placed, kept = adapter.in_basis(basis.Q, basis.side)
    of_base = {name: getattr(base, name) for name in ("family", "component", "base", "fingerprint")}
    method = {"input": "qr", "output": "qr-output"}[basis.side]
    return replace(
        placed, header=replace(adapter.header, **of_base, method=method, rank=basis.rank, basis=basis.digest)
    ), kept


RULES: dict[str, Callable[..., Merged]] = {
    "sum": add,  # arXiv 2507.04599, eq. 7
    "stack": stack,  # exact for any LoRA; PEFT's "cat", with the weight on one factor only
    "peft-linear": peft_linear,  # PEFT's and kohya's "linear"
    "ties": ties,  # arXiv 2306.01708
    "dare": dare,  # arXiv 2311.03099
    "knots": knots,  # arXiv 2410.19735
}
"""Name -> (adapters, weights, the rule's own parameters by keyword) -> the merged layers."""

OLD_RULES = {"plain": "peft-linear"}
"""Names of rules that go with 0.3 -> those of today."""


def _merged_header(adapters: Sequence[Adapter], weights: Sequence[float], rule: str, merged: Merged) -> Header:
    """The merged adapter's header: what all share, and where it comes from."""
    headers = [adapter.header for adapter in adapters]
    same_layers = all(adapter.layers.keys() == adapters[0].layers.keys() for adapter in adapters)
    keeps_basis = merged.method in METHODS and same_layers and len({header.basis for header in headers}) == 1
    return replace(
        headers[0],
        **{name: next(filter(None, (getattr(x, name) for x in headers)), "") for name in SHARED_ENTRIES},
        fingerprint={layer: value for header in reversed(headers) for layer, value in header.fingerprint.items()},
        endings=max((header.endings for header in headers), key=len),  # with alpha, if one has it
        kernels={layer: sides for header in headers for layer, sides in header.kernels.items()},
        method=merged.method,
        rank=max(pair.rank for pair in merged.layers.values()),
        targets=_joined(",", [header.targets for header in headers]),
        basis=headers[0].basis if keeps_basis else "",
        role="merged",
        trigger=_joined(", ", [header.trigger for header in headers]),
        prompt="",
        config={"rule": rule, "weights": [float(w) for w in weights], "kept_energy": merged.kept, **merged.settings},
        parents=sources(adapters, weights, merged.kept),
    )


def _joined(comma: str, texts: Sequence[str]) -> str:
    """Lists with commas as one, each entry once."""
    return comma.join(dict.fromkeys(part for text in texts for part in text.split(comma) if part))


def _check_same_base(first: Adapter, other: Adapter) -> None:
    """Raises ValueError unless two adapters can be of one base model, as far as their headers know."""
    for name in ("family", "component"):
        here, there = getattr(first.header, name), getattr(other.header, name)
        if here and there and here != there:
            raise ValueError(f"the adapters are of different {name}: {here!r} and {there!r}; they cannot be merged")
    here, there = first.header.endings, other.header.endings
    if here.split()[:2] != there.split()[:2]:
        raise ValueError(
            f"the layers' names are kept as their tools wrote them, in different ways ({here or 'ours'}, "
            f"{there or 'ours'}), so that nobody can tell which are the same; they cannot be merged"
        )
    first.check_shapes(other)
    if not same_base(first.header.fingerprint, other.header.fingerprint):
        raise ValueError(
            f"the adapters were trained on different base models, {first.header.base!r} and {other.header.base!r}, "
            "whose weights differ by more than 1 %; train both on one base model"
        )
