"""Speed runs of pre-training: which recipe needs the fewest CPU core-minutes to a given distance from the true images.

    python bench/pretraining.py --folder out/speedrun --minutes 4 --until 23:30

A fixed small set, 48 images of 128 x 128 pixels: eight contents by two hands in three styles, plain among them.  The
model is an eighth of `tiny-flux` (1.1 M parameters without text encoders) on the same latents; `world.pretrain`'s own
steps train it, with one recipe after the other (RECIPES).  Time is the process's own CPU time on one thread, so that
other work on the machine takes no part in it but through the caches; evaluations do not count.  The learning rate
decays over the last 30 % of each run's time.

Distance: every caption of the set drawn in two steps by the averaged weights, root mean square difference of latents
to the true image's (whose variance is about 1).  In more steps a base that has seen little draws noise, whose distance
says nothing.  Right: images in hundredths that are nearer to their own true image than to the 47 others.  A run that
was ended goes on from its last evaluation when the command is given again.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import arguments
from qrlora.families.flux import packed
from qrlora.world.base_architectures import ARCHITECTURES, TINY_FLUX, load_trained_vae, tiny_flux
from qrlora.world.captions import caption, style_words
from qrlora.world.classifiers import load_classifiers
from qrlora.world.drawings import HANDS, PLAIN_HAND, SIZE, contents_drawn_by, known_contents
from qrlora.world.ground_truth import true_images
from qrlora.world.pretraining_set import TrainingSet
from qrlora.world.pretraining_settings import PretrainingSettings
from qrlora.world.pretraining_state import Batch, PretrainingRun, sample_batch, training_step
from qrlora.world.styles import STYLES

SET_CONTENTS = 8
SET_HANDS = (PLAIN_HAND, "twemoji")
SET_STYLES = ("plain", "neon", "sepia")
BATCH, DRAWING_STEPS = 8, 2
EVALUATIONS = 4
"""Of each run, evenly spaced in its time."""

SHAPE = TINY_FLUX | {"double_layers": 2, "single_layers": 3, "heads": 3}
WIDE = TINY_FLUX | {"double_layers": 1, "single_layers": 2, "heads": 4}
DEEP = TINY_FLUX | {"double_layers": 4, "single_layers": 8, "heads": 2}
"""Of equal parameters, within 2 %: a block with two streams has 36, one with one stream 15 times its width squared."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to pre-train; what it leaves out is as in `world.pretrain`."""

    learning_rate: float = 4e-3
    optimizer: str = "Muon"
    """Or AdamW, for all parameters."""
    dtype: str = "float32"
    shape: dict[str, int] = dataclasses.field(default_factory=lambda: SHAPE)
    timestep_sampling: str = "logit-normal"
    half_size: float = 0.0
    """Fraction of the run, at its start, on latents of half their height and width."""
    regression: float = 0.0
    """Fraction of the run, at its start, at pure noise alone: the mean image of a caption is learnt."""
    alignment: float = 0.0
    """Weight of a loss that turns the mean of the image tokens, after the blocks with two streams, into the features
    that both classifiers have of the true image (arXiv 2410.06940, with our classifiers in place of DINOv2)."""
    seed: int = 0


RECIPES = {
    "Muon": Recipe(),
    "AdamW": Recipe(optimizer="AdamW"),
    "Muon, 1e-2": Recipe(learning_rate=1e-2),
    "AdamW, 1.5e-3": Recipe(learning_rate=1.5e-3, optimizer="AdamW"),
    "bfloat16": Recipe(dtype="bfloat16"),
    "wider, 3 blocks": Recipe(shape=WIDE),
    "half size at first": Recipe(half_size=0.5),
    "times uniform": Recipe(timestep_sampling="uniform"),
    "aligned to the classifiers": Recipe(alignment=0.5),
    "regression at first": Recipe(regression=0.15),
    "another seed": Recipe(seed=1),
    "narrower, 12 blocks": Recipe(shape=DEEP),
    "Muon, 1.5e-3": Recipe(learning_rate=1.5e-3),
    "AdamW, 1e-2": Recipe(learning_rate=1e-2, optimizer="AdamW"),
    "times noisy": Recipe(timestep_sampling="noisy"),
}
"""In the order in which they are run: what decides most comes first."""


@torch.no_grad()
def fixed_set(path: Path, threads: int) -> tuple[TrainingSet, Tensor]:
    """The latents of the set and its images (48, 3, 128, 128), made once."""
    hands, styles, known = tuple(HANDS), tuple(STYLES), known_contents()
    drawn = [n for n in known if all(n in contents_drawn_by(h) for h in SET_HANDS)]
    names = drawn[:: len(drawn) // SET_CONTENTS][:SET_CONTENTS]
    rows = [(c, h, s) for h in SET_HANDS for s in SET_STYLES for c in names]
    images = torch.cat([true_images(names, s, h) for h in SET_HANDS for s in SET_STYLES])
    if not path.exists():
        torch.set_num_threads(threads)
        vae: Any = load_trained_vae("tiny-flux")
        latents = torch.cat([vae.encode(x * 2 - 1).latents for x in images.split(BATCH)]) * vae.config.scaling_factor
        torch.save(latents.half(), path)
    columns = ([known.index(c), hands.index(h), styles.index(s)] for c, h, s in rows)
    content, hand, style = torch.tensor(list(columns)).unbind(1)
    latents = torch.load(path, weights_only=True)
    return TrainingSet(latents, content, hand, style, {"styled hands": (0, len(rows))}), images


class ClassifierAlignment:
    """The auxiliary loss of `Recipe.alignment`, with its linear head among the run's trained parameters."""

    def __init__(self, run: PretrainingRun, images: Tensor, weight: float) -> None:
        with torch.no_grad():
            classify: Any = load_classifiers().values()
            self.features = torch.cat(
                [torch.cat([model.features(x) for model in classify], 1) for x in images.split(BATCH)]
            )
        self.features = F.normalize(self.features - self.features.mean(0), dim=1)
        width = run.pipe.transformer.inner_dim
        self.weight, self.head = weight, nn.Linear(width, self.features.shape[1], bias=False)
        run.model["alignment"], run.weights["alignment.weight"] = self.head, self.head.weight
        run.average["alignment.weight"] = self.head.weight.detach().clone()
        run.optimizers[-1].add_param_group({"params": [self.head.weight]})
        run.pipe.transformer.transformer_blocks[-1].register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: Any, outputs: Any) -> None:
        self.tokens = outputs[1]  # diffusers' block returns the text's stream first

    def __call__(self, batch: Batch) -> Tensor:
        found = self.head(self.tokens.float().mean(1))
        return self.weight * (1 - F.cosine_similarity(found, self.features[batch.rows])).mean()


def prepare(recipe: Recipe) -> PretrainingRun:
    """A run of `world.pretrain`, untrained, of the recipe's architecture and optimizers."""
    ARCHITECTURES["speedrun"] = dataclasses.replace(
        ARCHITECTURES["tiny-flux"], build=partial(tiny_flux, recipe.shape), timestep_sampling=recipe.timestep_sampling
    )
    settings = PretrainingSettings(
        samples=10**9,  # the clock ends a run
        batch_size=BATCH,
        learning_rate=recipe.learning_rate,
        warmup=30,
        dtype=recipe.dtype,
        seed=recipe.seed,
    )
    run = PretrainingRun("speedrun", settings, "cpu")
    if recipe.optimizer == "AdamW":
        options = {"lr": recipe.learning_rate, "betas": (0.9, 0.99), "weight_decay": 0.01, "fused": True}
        run.optimizers = [torch.optim.AdamW(run.weights.values(), **options)]
    return run


def batches_of(recipe: Recipe, run: PretrainingRun, data: TrainingSet) -> Callable[[float], tuple[TrainingSet, Batch]]:
    """(fraction of the run that is over) -> the set and the batch of the next step, as the recipe wants them."""
    small = F.avg_pool2d(data.latents.float(), 2)
    half = dataclasses.replace(data, latents=(small * (data.latents.float().std() / small.std())).half())

    def take(over: float) -> tuple[TrainingSet, Batch]:
        batch = sample_batch(run, data, run.step)
        if over < recipe.regression:
            batch = dataclasses.replace(batch, time=torch.full_like(batch.time, 1000.0))
        return (half if over < recipe.half_size else data), batch

    return take


@torch.no_grad()
def distances(run: PretrainingRun, data: TrainingSet) -> dict[str, float]:
    """What images drawn by the averaged weights are like."""
    pipe = ARCHITECTURES["speedrun"].build()
    for name in ARCHITECTURES["speedrun"].trained_components:
        prefix = f"{name}."
        weights = {k.removeprefix(prefix): v for k, v in run.average.items() if k.startswith(prefix)}
        getattr(pipe, name).eval().load_state_dict(weights)
    rows = range(len(data.latents))
    labels = [data.labels(row) for row in rows]
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(
        [caption(c, style_words(s, h)) for c, s, h in labels],
        height=SIZE,
        width=SIZE,
        num_inference_steps=DRAWING_STEPS,
        guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(row) for row in rows],
        output_type="latent",
    ).images
    true = packed(data.latents.float())
    nearest = torch.cdist(drawn.flatten(1), true.flatten(1)).argmin(1)
    return {
        "distance": float((drawn - true).square().mean().sqrt()),
        "right": float((nearest == torch.tensor(list(rows))).float().mean()),
    }


def measure(name: str, data: TrainingSet, images: Tensor, folder: Path, seconds: float, end: float) -> bool:
    """One speed run, kept after each evaluation. Args: end: by `time.time`. Returns: whether it is whole."""
    recipe, result, state = RECIPES[name], folder / f"{name}.json", folder / f"{name}.pt"
    run = prepare(recipe)
    auxiliary = ClassifierAlignment(run, images, recipe.alignment) if recipe.alignment else None
    rows: list[dict[str, float]] = []
    if result.exists():
        rows = json.loads(result.read_text())["rows"]
        run.load(state)
    used = rows[-1]["seconds"] if rows else 0.0
    take, losses = batches_of(recipe, run, data), []
    while used < seconds:
        if time.time() > end:
            return False
        over, begun = used / seconds, time.process_time()
        of_step, batch = take(over)
        losses.append(float(training_step(run, of_step, batch, over, auxiliary)))
        used += time.process_time() - begun
        if used >= seconds * (len(rows) + 1) / EVALUATIONS:
            row = {"seconds": used, "steps": run.step, "loss": sum(losses) / len(losses)}
            rows.append(row | distances(run, data))
            losses.clear()
            run.save(state)
            result.write_text(json.dumps({"rows": rows}))
            print(datetime.now().strftime("%T"), name, {k: round(v, 4) for k, v in rows[-1].items()}, flush=True)
    state.unlink()
    return True


def whole_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured of the recipes whose runs have ended."""
    files = {name: folder / f"{name}.json" for name in RECIPES}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    return {name: result for name, result in found.items() if len(result["rows"]) == EVALUATIONS}


def minutes_to(rows: list[dict[str, float]], goal: float) -> float | None:
    """Core-minutes at which a run's distance first is the goal or less, between evaluations on a straight line."""
    before = None
    for row in rows:
        if row["distance"] <= goal:
            if before is None:
                return row["seconds"] / 60
            share = (before["distance"] - goal) / (before["distance"] - row["distance"])
            return (before["seconds"] + share * (row["seconds"] - before["seconds"])) / 60
        before = row
    return None


def table(folder: Path) -> str:
    """The table of all whole runs, in Markdown. The goal is the end of AdamW's best run."""
    found = whole_runs(folder)
    ends = [found[n]["rows"][-1]["distance"] for n, r in RECIPES.items() if r.optimizer == "AdamW" and n in found]
    goal = min(ends, default=0.0)
    lines = [
        f"| recipe | rate | images | a core-second | loss | distance | right | core-minutes to {goal:.3f} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        rows, last, to = result["rows"], result["rows"][-1], minutes_to(result["rows"], goal)
        count = last["steps"] * BATCH
        cells = (
            f"{RECIPES[name].learning_rate:.2g}",
            f"{count:,.0f}",
            f"{count / last['seconds']:.0f}",
            f"{rows[-1]['loss']:.3f}",
            f"{last['distance']:.3f}",
            f"{100 * last['right']:.0f}",
            "not reached" if to is None else f"{to:.2f}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="core-minutes of each run")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="recipes")
    parser.add_argument(
        "--until", default="", help="HH:MM of today's clock at which to stop; the command goes on later"
    )
    parser.add_argument("--table", action="store_true", help="print the table of what was measured, measure nothing")
    wanted = parser.parse_args()
    wanted.folder.mkdir(parents=True, exist_ok=True)
    if not wanted.table:
        hour, minute = (int(x) for x in (wanted.until or "23:59").split(":"))
        end = datetime.now().replace(hour=hour, minute=minute, second=0).timestamp()
        torch.set_num_threads(1)
        data, images = fixed_set(wanted.folder / "latents.pt", wanted.threads)
        torch.set_num_threads(1)
        seconds = 6.0 if wanted.quick else 60 * wanted.minutes
        for name in wanted.only:
            if name not in whole_runs(wanted.folder) and not measure(name, data, images, wanted.folder, seconds, end):
                break
    print(table(wanted.folder))


if __name__ == "__main__":
    main()
