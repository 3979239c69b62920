"""What each component takes of a device in its turn: text encoders, VAE, and the trainable component as it draws.

Counted as updates are, by running the real parts where tensors have shapes and no bytes; activations times MARGIN.
With the longest prompt, since previews and negative prompts may be other ones than the training's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..families.base_model import PROMPT_BATCH
from ..families.component_checks import learned_positions
from ..families.pipeline_steps import as_frames, as_read
from ..initialisation_methods import METHODS
from .estimate_report import MARGIN
from .memory_counting import LiveBytes, flash_attention
from .training_task import TrainingTask


def encoding_bytes(task: TrainingTask, spare: Mapping[str, nn.Module]) -> dict[str, int]:
    """{"text encoders", "VAE": most bytes that each takes of the device while prompt and image are encoded}; nothing
    else is there.

    Args: spare: the text encoders in their dtype and the VAE, on the meta device.
    """
    texts = [spare[name] for name in task.base.family.text_encoders if name in spare]
    height, width = (side * task.base.pixels_per_latent for side in task.latent_size)
    method = METHODS.get(task.config.method)
    rows = PROMPT_BATCH if method and method.needs_example else 1
    read = max(
        (_peak_component_bytes([part], lambda p=part: p(**_prompt_inputs(task, p, rows))) for part in texts), default=0
    )
    vae: Any = spare["vae"]
    seen = _peak_component_bytes([vae], lambda: vae.encode(as_read(vae, torch.empty(1, 3, height, width))))
    return {"text encoders": module_bytes(texts) + read, "VAE": module_bytes([vae]) + seen}


def sampling_bytes(task: TrainingTask, spare: Mapping[str, nn.Module]) -> dict[str, int]:
    """{"denoising", "decoding": most bytes that each takes beside the trainable component while an image is drawn}."""
    vae: Any = spare["vae"]
    base = task.base
    rows = base.family.rows_per_step(base.pipe, base.defaults.guidance)
    latents, condition = task.example(rows, "meta", task.tokens.unpadded)
    inputs = [latents, *condition.tensors.values()]
    own = [base.model]
    prediction = _peak_component_bytes(
        own, lambda: base.family.predict(base.model, latents, torch.empty(rows), condition)
    )
    pixels = _peak_component_bytes([vae], lambda: vae.decode(as_frames(vae, torch.empty(1, *latents.shape[1:]))))
    trained_on, its_condition = task.example(task.config.batch_size or 1, "meta")  # stay there during a preview
    held = sum(x.nbytes for x in (*inputs, trained_on, *its_condition.tensors.values()))
    return {"denoising": held + prediction, "decoding": held + module_bytes([vae]) + pixels}


def module_bytes(parts: Iterable[nn.Module]) -> int:
    """Bytes of parameters and buffers."""
    return sum(x.nbytes for part in parts for x in (*part.parameters(), *part.buffers()))


def _prompt_inputs(task: TrainingTask, encoder: nn.Module, rows: int) -> dict[str, Tensor]:
    """Numbers of the tokens of prompts, (rows, n): as many as CLIP takes, or the most that the model reads; with the
    mask (rows, 1, n, n) of a causal language model, which would look at one of (rows, n), and here are no values."""
    config: Any = encoder.config
    longest = learned_positions(config.to_dict())
    family = task.base.family
    encoded = family.encoded_tokens and family.encoded_tokens(task.tokens)
    padded = encoded or family.input_shapes(task.base.pipe, task.latent_size, task.tokens)["text"][1]
    ids = torch.zeros(rows, min(longest, task.tokens.clip) if longest else padded, dtype=torch.long)
    causal = "rope_parameters" in config.get_text_config().to_dict()
    mask = {"attention_mask": torch.ones(rows, 1, padded, padded, dtype=torch.bool)} if causal else {}
    return {"input_ids": ids, **mask}


def _peak_component_bytes(parts: Iterable[nn.Module], work: Callable[[], Any]) -> int:
    """Most bytes alive at once while components compute, beyond their weights, times MARGIN; on the meta device."""
    known = [x for part in parts for x in (*part.parameters(), *part.buffers())]
    with torch.no_grad(), torch.device("meta"), flash_attention(), LiveBytes(known) as live:
        work()
    return round(MARGIN * live.peak)
