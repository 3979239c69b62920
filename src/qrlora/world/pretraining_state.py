"""The state of a pre-training run (weights, optimizers, weight average), its training step and its checkpoints."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..built_in_bases import built_in_bases
from ..families import FAMILIES
from ..families.condition import Condition
from ..families.library_messages import config_errors_in_one_line, opening_errors_in_one_line
from ..json_objects import read_json_object
from ..noising import noising_of
from ..training import denoising_loss
from .base_architectures import ARCHITECTURES, Tokens
from .captions import training_caption
from .muon import Muon
from .pretraining_checkpoint import (
    check_optimizers_fit,
    check_same_run,
    check_weights_fit,
    read_checkpoint,
    write_checkpoint,
)
from .pretraining_set import TrainingSet
from .pretraining_settings import PretrainingSettings
from .state_dicts import shape_difference

CPU_PART = 24
"""Images that go through the model at once on a CPU; of more, activations leave the cache: bench/pretraining_step.py"""


def pretraining_optimizers(
    weights: dict[str, Tensor], learning_rate: float, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """The optimizers of pre-training: Muon, in ``dtype``, for the matrices inside blocks, AdamW for all else.

    The first edition's ``tiny-flux`` after 14,400 images: loss 0.463 against 0.472 with AdamW alone, falling faster.
    """
    inner = {name: p for name, p in weights.items() if "block" in name and p.ndim > 1 and min(p.flatten(1).shape) >= 32}
    rest = [p for name, p in weights.items() if name not in inner]
    return [
        Muon(inner.values(), lr=learning_rate, weight_decay=0.01, dtype=dtype),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
    ]


def trained_base_folder(start: str) -> Path:
    """Folder of a trained base, from the setting `start`: a built-in name or a folder."""
    return built_in_bases().get(start, Path(start))


def training_record(folder: Path) -> dict[str, Any] | None:
    """How the base in a folder was trained, its ``training.json``; None: it has none."""
    path = folder / "training.json"
    return read_json_object(path) if path.is_file() else None


class PretrainingRun:
    """All state of a pre-training run: float32 weights, their moving average, optimizers, step count."""

    def __init__(self, base: str, settings: PretrainingSettings, device: str) -> None:
        if settings.dtype == "auto":
            settings = replace(settings, dtype="float32" if device == "cpu" else "bfloat16")
        self.base, self.settings, self.device, self.step = base, settings, device, 0
        self.over = 0.0  # fraction of the run's time that has passed, if the clock ends it
        self.losses: list[Tensor] = []  # of the steps since the last row of the log
        self.training_set = ""  # digest of the training set
        self.before = training_record(trained_base_folder(settings.start)) if settings.start else None
        self.dtype = getattr(torch, settings.dtype)
        architecture = ARCHITECTURES[base]
        torch.manual_seed(settings.seed)
        self.pipe = architecture.build()
        if settings.start:
            self._initialise_from(trained_base_folder(settings.start))
        self.family = next(f for f in FAMILIES.values() if f.pipeline == type(self.pipe).__name__)
        self.noising = noising_of(self.pipe.scheduler.config, timestep_sampling=architecture.timestep_sampling)
        self.pipe.to(device)
        for component in self.pipe.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()
        trained = architecture.trained_components
        self.model = nn.ModuleDict({name: getattr(self.pipe, name).train() for name in trained})
        self.model.requires_grad_(True).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.weights: dict[str, Tensor] = dict(self.model.named_parameters())
        if self.dtype != torch.float32:
            self.weights = {name: p.detach().clone().requires_grad_() for name, p in self.weights.items()}
            for p in self.model.parameters():  # buffers stay: positions want float32
                p.data = p.data.to(self.dtype)
        self.optimizers = pretraining_optimizers(self.weights, settings.learning_rate, self.dtype)

    def _initialise_from(self, folder: Path) -> None:
        """Start pre-training from the weights of a base in a folder.

        Raises: ValueError: it is of another family, or of another shape, as bases of another edition are.
        """
        kind, index = type(self.pipe).__name__, folder / "model_index.json"
        found = read_json_object(index).get("_class_name") if index.is_file() else "no pipeline's folder"
        if found != kind:
            raise ValueError(f"start={folder}: {self.base} is a {kind}, this is {found}")
        with opening_errors_in_one_line(str(folder)), config_errors_in_one_line(folder):
            base = type(self.pipe).from_pretrained(folder, torch_dtype=torch.float32)
        for name, component in base.components.items():
            if isinstance(component, nn.Module):
                own, given = getattr(self.pipe, name), component.state_dict()
                if difference := shape_difference(own.state_dict(), given):
                    raise ValueError(
                        f"start={folder} has another shape than today's {self.base}, as bases of another edition have: "
                        f"{name}'s {difference}: leave start out"
                    )
                own.load_state_dict(given)

    def is_over(self, within: float) -> bool:
        """Whether the run has come to its end, by its samples, or by the clock if that ends it (`within`)."""
        return self.step >= self.settings.steps or (within > 0 and self.over >= 1)

    def save(self, path: Path) -> None:
        """Write the state of the pre-training run as a checkpoint."""
        state = {
            "base": self.base,
            "step": self.step,
            "over": self.over,
            "losses": self.losses,
            "before": self.before,
            "model": self.float32_state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "settings": asdict(self.settings),
            "training_set": self.training_set,
        }
        write_checkpoint(path, state)

    def load(self, path: Path) -> None:
        """Resume the pre-training run from a checkpoint.

        Raises: OSError.  ValueError: it is none, or was made for another base, with other settings, drawings, another
                dtype or another version's optimizers than this run has; the run is as it was.
        """
        state = read_checkpoint(path, self.device)
        check_same_run(path, state, self.base, self.settings, self.training_set)
        check_weights_fit(path, state, self.average)
        check_optimizers_fit(path, state, self.optimizers)
        self.restore_weights(state)
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)

    def restore_weights(self, state: dict[str, Any]) -> None:
        """Take all but the optimizers' state from a checkpoint that fits the run."""
        self.step, self.over, self.losses = state["step"], state.get("over", 0.0), state.get("losses", [])
        self.before = state.get("before", self.before)
        self.model.load_state_dict(state["model"])
        for name, weight in self.weights.items():
            weight.data.copy_(state["model"][name])
        self.average = state["average"]

    def float32_state_dict(self) -> dict[str, Tensor]:
        """The model's state_dict with float32 weights, tied ones under each of their names."""
        first = {id(p): name for name, p in self.model.named_parameters()}
        every = self.model.named_parameters(remove_duplicate=False)
        return {**self.model.state_dict(), **{name: self.weights[first[id(p)]].detach() for name, p in every}}

    def optimizer_step(self) -> None:
        """One step of both optimizers on the run's float32 weights, then an update of their moving average."""
        mixed_precision = self.dtype != torch.float32
        if mixed_precision:
            for name, p in self.model.named_parameters():
                if p.grad is not None:
                    self.weights[name].grad = p.grad.to(torch.float32)
                    p.grad = None
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if mixed_precision:
            with torch.no_grad():
                torch._foreach_copy_(list(self.model.parameters()), list(self.weights.values()))
        weight = 1 - min(self.settings.average, (self.step + 1) / (self.step + 10))
        state = self.float32_state_dict()
        torch._foreach_lerp_(list(self.average.values()), [state[name] for name in self.average], weight)

    def averaged_pipeline(self) -> Any:
        """The pipeline with the run's averaged weights in place of the current ones, to sample from or to save."""
        self.model.float().load_state_dict(self.average)
        self.model.eval().requires_grad_(False)
        return self.pipe


@dataclass(frozen=True)
class Batch:
    """The inputs of one training step, before noise is added."""

    rows: Tensor
    """(b,) row indices of the training set."""
    tokens: Tokens
    """Token ids of the captions."""
    time: Tensor
    """(b,) timesteps as the model takes them."""

    def split(self, size: int) -> list["Batch"]:
        """The batch in parts of so many images, the last of what is left."""
        tokens = [
            dict(zip(self.tokens, parts, strict=True))
            for parts in zip(*(x.split(size) for x in self.tokens.values()), strict=True)
        ]
        return [Batch(*part) for part in zip(self.rows.split(size), tokens, self.time.split(size), strict=True)]


def sample_batch(run: PretrainingRun, data: TrainingSet, step: int) -> Batch:
    """The batch of a pre-training step: a function of the seed and the step alone."""
    generator = torch.Generator().manual_seed(run.settings.seed * 1_000_003 + step)
    rows = data.sample_rows(run.settings.batch_size, generator)
    captions = [training_caption(*data.labels(row), generator) for row in rows.tolist()]
    return Batch(
        rows, ARCHITECTURES[run.base].tokenize(run.pipe, captions), run.noising.sample_time(len(rows), generator)
    )


def training_loss(run: PretrainingRun, data: TrainingSet, batch: Batch, noise: Tensor) -> Tensor:
    """The family's denoising loss on a batch of pre-training, with gradients into the text encoders.

    Args: noise: of the batch's latents.
    """
    clean = data.latents[batch.rows.to(data.latents.device)].to(run.device).float()
    tokens = {name: x.to(run.device, non_blocking=True) for name, x in batch.tokens.items()}
    condition = Condition(ARCHITECTURES[run.base].encode(run.pipe, tokens))
    model = getattr(run.pipe, run.family.component)
    return denoising_loss(run.family.predict, model, run.noising, clean, noise, batch.time, condition)


def training_step(
    run: PretrainingRun,
    data: TrainingSet,
    batch: Batch,
    over: float = 0.0,
    auxiliary_loss: Callable[[Batch], Tensor] | None = None,
) -> Tensor:
    """One pre-training update of weights and average; returns the loss.

    On a CPU the batch goes through the model in parts (`CPU_PART`), whose gradients add up to the batch's.

    Args: over: see `PretrainingSettings.learning_rate_at`.  auxiliary_loss: is called after the forward pass of each
          part, with the part, and added to its denoising loss.
    """
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = run.settings.learning_rate_at(run.step, over)
    count = len(batch.rows)
    size = CPU_PART if run.device == "cpu" else count
    seeded = torch.Generator(run.device).manual_seed(run.settings.seed * 1_000_003 + run.step)
    noise = torch.randn((count, *data.latents.shape[1:]), generator=seeded, device=run.device)
    total = noise.new_zeros(())
    for part, of_part in zip(batch.split(size), noise.split(size), strict=True):
        loss, share = training_loss(run, data, part, of_part), len(part.rows) / count
        (share * (loss + auxiliary_loss(part) if auxiliary_loss else loss)).backward()
        total += share * loss.detach()
    run.optimizer_step()
    run.step += 1
    return total
