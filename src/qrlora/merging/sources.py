"""Where a merge comes from: every adapter that went into it, once, whatever merges lie between."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..adapter import Adapter

OWN = ("weight", "kept_energy")
"""What belongs to a merge and not to its source."""


def sources(
    adapters: Sequence[Adapter], weights: Sequence[float], kept: Sequence[float] | None
) -> tuple[dict[str, Any], ...]:
    """The sources of a merge: header, digest, weight and fraction of squared norm kept of each adapter that is no merge
    itself; nothing is nested.

    One that comes in several ways is named once, with the sum of its weights; through a merge of merges a weight is the
    product of those on the way, and so is the fraction of squared norm kept, of which the smallest counts (None: not
    known, the result of a rule is no sum).
    """
    found: dict[str, dict[str, Any]] = {}
    for adapter, weight, share in zip(adapters, weights, kept or [None] * len(adapters), strict=True):
        for source in _sources_of_adapter(adapter):
            entry = {name: value for name, value in source.items() if name not in OWN}
            shares = [share, source["kept_energy"]]
            through = None if None in shares else shares[0] * shares[1]
            entry = found.setdefault(
                json.dumps(entry, sort_keys=True), {**entry, "weight": 0.0, "kept_energy": through}
            )
            entry["weight"] += float(weight) * source["weight"]
            both = [entry["kept_energy"], through]
            entry["kept_energy"] = None if None in both else min(both)
    return tuple(found.values())


def _sources_of_adapter(adapter: Adapter) -> Iterator[dict[str, Any]]:
    """The sources of a merge as its header names them, or the adapter itself."""
    if adapter.header.parents:
        yield from _leaves_of_merges(adapter.header.parents)
    else:
        yield {
            **adapter.header.entries(),
            "parents": [],
            "digest": _adapter_digest(adapter),
            "weight": 1.0,
            "kept_energy": 1.0,
        }


def _leaves_of_merges(parents: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The sources in files of qrlora 0.1.0, which name merges within merges: what those were made of."""
    waiting = [dict(parent) for parent in reversed(parents)]
    while waiting:
        entry = waiting.pop()
        within = entry.get("parents") or []
        if not within:
            yield entry
        for parent in reversed(within):
            shares = [entry["kept_energy"], parent["kept_energy"]]
            through = None if None in shares else shares[0] * shares[1]
            waiting.append({**parent, "weight": entry["weight"] * parent["weight"], "kept_energy": through})


def _adapter_digest(adapter: Adapter) -> str:
    """Tells adapters of equal headers apart, as those of other tools: by the sums of their factors' words, at the pace
    of memory."""
    state = hashlib.sha256()
    for layer, pair in sorted(adapter.layers.items()):
        sums = [int(x.contiguous().view(torch.int32).sum(dtype=torch.int64)) for x in (pair.A, pair.B)]
        state.update(f"{layer} {tuple(pair.A.shape)} {tuple(pair.B.shape)} {sums}".encode())
    return state.hexdigest()[:16]
