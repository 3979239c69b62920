"""The demonstration: a content adapter and a style adapter from one picture each, added, beside the true answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import output_files
from ..adapter import Adapter
from ..config import TrainConfig
from ..families import Base, open_base
from ..files import save
from ..merging import merge
from ..sampling import generate
from ..training import Progress, train
from ..training_example import load_picture
from .captions import CONTENT, LEARN_CONTENT, STYLE, caption
from .classifiers import Classification, classify
from .drawings import SIZE, contents, true_pictures
from .styles import ALL_STYLES

CONTENT_NAME, STYLE_NAME, STYLE_THING, OTHER_THING = "robot", "dusk", "panda", "owl"
"""What the demonstration learns unless it is given pictures: a held-out thing, a held-out style on a known thing, and
another known thing that the style alone is shown on."""


@dataclass(frozen=True)
class Row:
    """Pictures of one kind with what the classifiers say of each, and what they should say (empty: nobody knows)."""

    title: str
    pictures: Sequence[Image.Image]
    verdicts: Sequence[Classification]
    content: str = ""
    style: str = ""

    def right(self, verdict: Classification) -> bool | None:
        """Whether a verdict names all that is known of this row; None if nothing is."""
        known = [(verdict.content, self.content), (verdict.style, self.style)]
        return all(said == true for said, true in known if true) if any(true for _, true in known) else None


def to_pillow(pictures: Tensor) -> list[Image.Image]:
    """Pictures (b, 3, h, w) in 0..1 as 8-bit images."""
    return [Image.fromarray(p) for p in (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()]


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Images as (b, 3, 128, 128) in 0..1, resized to what the judges see."""
    fitted = [p.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS) for p in pictures]
    return torch.from_numpy(np.stack([np.asarray(p, dtype=np.float32) for p in fitted])).permute(0, 3, 1, 2) / 255


def classified(title: str, pictures: Sequence[Image.Image], content: str = "", style: str = "") -> Row:
    return Row(title, pictures, classify(to_tensor(pictures)), content, style)


def true_image(content: str, style: str) -> Image.Image:
    return to_pillow(true_pictures([content], style))[0]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One picture to learn from: its file, the caption, and what of the world it shows (empty: nobody knows)."""

    image: Path
    prompt: str
    content: str = ""
    style: str = ""


def _written(picture: Image.Image, path: Path, overwrite: bool) -> None:
    with output_files.atomic(path, overwrite) as file:
        picture.save(file, "PNG")


def lessons(
    folder: Path, content: Path | None, style: Path | None, style_shows: str, overwrite: bool
) -> tuple[Lesson, Lesson]:
    """The two lessons: the caller's own pictures, or ones of the world, which are written to the folder."""
    if content is None:
        _written(true_image(CONTENT_NAME, "plain"), folder / "content.png", overwrite)
        first = Lesson(image=folder / "content.png", prompt=LEARN_CONTENT, content=CONTENT_NAME, style="plain")
    else:
        first = Lesson(image=content, prompt=LEARN_CONTENT)
    if style is None:
        _written(true_image(STYLE_THING, STYLE_NAME), folder / "style.png", overwrite)
        shown = caption(STYLE_THING, STYLE)
        return first, Lesson(image=folder / "style.png", prompt=shown, content=STYLE_THING, style=STYLE_NAME)
    return first, Lesson(image=style, prompt=caption(style_shows, STYLE))


def demo(
    folder: Path,
    content: Path | None = None,
    style: Path | None = None,
    *,
    base: str = "tiny-flux",
    style_shows: str = "thing",
    method: str = "qr",
    steps: int | None = None,
    count: int = 4,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    on_step: Callable[[str, Progress], Any] | None = None,
    on_stage: Callable[[str, float], Any] | None = None,
) -> list[Row]:
    """Learn, merge and draw; writes ``content``, ``style`` and ``merged.safetensors`` to the folder.

    Args:    content, style: the caller's own pictures; None takes the world's, whose true fusion is known.
             style_shows: what the caller's style picture shows, in a word.
             steps: None for the base's own; fewer are for a quick look.  count: pictures of each kind.
             overwrite: whether files of a demonstration with other pictures or settings may be replaced.
             on_step: (what is learnt, progress).  on_stage: (what is done, share).
    Returns: rows of pictures: the inputs, content alone, style alone, merged and, if known, the truth, with verdicts
             where the answer is known.
    Raises:  ValueError, OSError: as `training.train`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = lessons(folder, content, style, style_shows, overwrite)
    for lesson in about:
        load_picture(lesson.image, SIZE)  # both pictures are refused before minutes are spent on the first
    opened = open_base(base, device, "float32")  # as the model cards' figures are
    adapters = [
        _learn(opened, role, lesson, folder, method, steps, seed, overwrite, on_step, on_stage)
        for role, lesson in zip(("content", "style"), about, strict=True)
    ]
    merged = merge(adapters, [1.0, 1.0])
    save(merged, folder / "merged.safetensors", overwrite=True)  # of the two that were just written
    return _rows(opened, about, adapters, merged, count, seed, on_stage)


def _learn(
    base: Base,
    role: Any,
    lesson: Lesson,
    folder: Path,
    method: str,
    steps: int | None,
    seed: int,
    overwrite: bool,
    on_step: Callable[[str, Progress], Any] | None,
    on_stage: Callable[[str, float], Any] | None,
) -> Adapter:
    output = folder / f"{role}.safetensors"
    config = TrainConfig(
        base=base.name,
        image=lesson.image,
        role=role,
        prompt=lesson.prompt,
        output=output,
        method=method,
        seed=seed,
        overwrite=overwrite,
    )
    heard = None if on_step is None else lambda progress: on_step(role, progress)
    return train(replace(config, steps=steps), base=base, on_step=heard, on_stage=on_stage)


def _rows(
    base: Base,
    about: tuple[Lesson, Lesson],
    adapters: Sequence[Adapter],
    merged: Adapter,
    count: int,
    seed: int,
    on_stage: Callable[[str, float], Any] | None,
) -> list[Row]:
    thing, manner = about
    draws = (
        ("content adapter", LEARN_CONTENT, adapters[0], thing.content, thing.style),
        ("style adapter", caption(OTHER_THING, STYLE), adapters[1], OTHER_THING, manner.style),
        ("merged by adding", caption(CONTENT, STYLE), merged, thing.content, manner.style),
    )
    size = base.defaults.resolution
    inputs = [load_picture(lesson.image, size).image for lesson in about]
    rows = [
        classified("content picture", inputs[:1], thing.content, thing.style),
        classified("style picture", inputs[1:], manner.content, manner.style),
    ]
    for k, (title, prompt, adapter, true_content, true_style) in enumerate(draws):
        if on_stage:
            on_stage("drawing", k / len(draws))
        pictures = generate(base, prompt, [(adapter, 1.0)], count=count, seed=seed)
        rows.append(classified(f"{title}: “{prompt}”", pictures, true_content, true_style))
    if thing.content in contents() and manner.style in ALL_STYLES:
        rows.append(
            classified("the true picture", [true_image(thing.content, manner.style)], thing.content, manner.style)
        )
    return rows
