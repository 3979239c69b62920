"""Digests of an open base: one of each of its components, equal wherever the same base is opened.

Nothing in it was computed by a device: weights as they are held, configurations, tokenizers, and the noising process.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..noising import process_of
from ..safetensors_files import raw_bytes
from .base_model import Base

SUMMED_WORDS, SUMS_AT_ONCE = 1 << 16, 16
"""32-bit words of a tensor that are summed into one number, and sums that are asked for at once."""
BOOKKEEPING = ("transformers_version", "dtype", "torch_dtype", "architectures")
"""Entries of a component's config that say who wrote it, beside those that begin with an underscore; the weights
themselves say their dtype."""


def component_digests(base: Base) -> dict[str, Any]:
    """{component: 16 hex digits} of a base's models and tokenizers, and under "noising" its process in plain values."""
    found = {}
    for name, component in sorted(base.pipe.components.items()):
        if isinstance(component, nn.Module):
            found[name] = model_digest(component)[:16]
        elif hasattr(tokenizer := getattr(component, "tokenizer", component), "get_vocab"):  # also within a processor
            found[name] = tokenizer_digest(tokenizer)[:16]
    return {**found, "noising": process_of(base.pipe.scheduler.config)}


def model_digest(model: nn.Module) -> str:
    """SHA-256 (hex) of a model's class, configuration and tensors by name; all of each is read, where it lies."""
    state = hashlib.sha256(f"{type(model).__name__} {_config_as_text(getattr(model, 'config', {}))}".encode())
    for name, value in sorted(model.state_dict().items()):
        for tensor in _inner_tensors(value):
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor_digest(tensor))
    return state.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 (hex) of all that decides which numbers a prompt becomes, but for the length that the last call asked
    for."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tokenization = json.loads(backend.to_str()) if backend else {"vocabulary": tokenizer.get_vocab()}
    own = {name: getattr(tokenizer, name) for name in ("model_max_length", "pad_token_id", "padding_side")}
    if template := getattr(tokenizer, "chat_template", None):
        own["chat_template"] = template
    return hashlib.sha256(json.dumps({**tokenization, **own, "truncation": None, "padding": None}).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> bytes:
    """Bytes that two tensors of one dtype and shape share only if they are equal, but for one chance in 2^32.

    Whole rows of 32-bit words w become sum_i m_i w_i mod 2^64, with m_i odd and random once and for all: integers, so
    that every device finds the same, at the pace at which it reads, and only the sums travel. The rest is given as is.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.storage_offset() * flat.element_size() % 4:
        flat = flat.clone()
    per_row = SUMMED_WORDS * 4 // flat.element_size()
    whole = len(flat) // per_row * per_row
    sums = [raw_bytes(flat[whole:])]
    multipliers = _multipliers(flat.device)
    for words in flat[:whole].view(torch.int32).view(-1, SUMMED_WORDS).split(SUMS_AT_ONCE) if whole else ():
        sums.append(raw_bytes((words * multipliers).sum(1)))
    return b"".join(sums)


@functools.cache
def _multipliers(device: torch.device) -> Tensor:
    """m (ROW,) int64."""
    drawn = torch.randint(-(2**62), 2**62, (SUMMED_WORDS,), generator=torch.Generator().manual_seed(0))
    return (2 * drawn + 1).to(device)


def _inner_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors whose bytes a digest is of: one that torchao has quantised holds numbers and scales."""
    if not isinstance(value, Tensor):  # a module's extra state, which no model of ours has
        return
    inner = getattr(value, "__tensor_flatten__", None)
    if inner is None:
        yield value
    else:
        for name in inner()[0]:
            yield from _inner_tensors(getattr(value, name))


def _config_as_text(config: Any) -> str:
    """A base's configuration as text for its digest, without bookkeeping."""
    values = dict(config) if isinstance(config, dict) else config.to_dict()
    kept = {name: value for name, value in values.items() if not name.startswith("_") and name not in BOOKKEEPING}
    return json.dumps(kept, sort_keys=True, default=str)
