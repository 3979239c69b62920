"""The demonstration: a content adapter and a style adapter from one image each, merged, beside the ground truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from .. import output_files
from ..adapter import Adapter
from ..built_in_bases import built_in_bases
from ..config import TRIGGERS, TrainConfig
from ..families import Base, open_base
from ..files import save
from ..filtered_images import write_filtered_images
from ..image_loading import load_image
from ..known_words import least_loss_word, nearest_word, search_words_of_file
from ..merging import merge
from ..sampling import generate
from ..sampling_arguments import check_images_fit_memory
from ..training import Progress, train
from .captions import caption, with_article
from .captions import known_words as known_words_of
from .classified_images import ClassifiedImages, classify_images
from .drawings import SIZE, contents
from .edition import check_edition_of_base
from .ground_truth import true_image
from .style_filters import known_filters
from .styles import ALL_STYLES

CONTENT_NAME, STYLE_NAME, STYLE_IMAGE_CONTENT, OTHER_CONTENT = "robot", "dusk", "panda", "owl"
"""The default inputs: a held-out content; a held-out style, on an image of a known content; and another known content,
on which the style adapter alone is tried."""
Role = Literal["content", "style"]
ROLES: tuple[Role, Role] = ("content", "style")
ANYTHING = "thing"
"""What a style image shows, where nobody says it and no built-in base is asked."""
OnStage = Callable[[str, float], Any] | None
"""(stage, fraction done)."""
MERGED, TRUTH = "both, added", "what should come out"
"""How the titles of two rows begin: of the merged adapters, and of the ground truth."""


@dataclass(frozen=True, kw_only=True)
class DemoInput:
    """One training image: its file, its caption with {} for the trained word, and its true labels ("": unknown)."""

    image: Path
    template: str
    content: str = ""
    style: str = ""


def _write_png(image: Image.Image, path: Path, overwrite: bool) -> None:
    with output_files.atomic(path, overwrite) as file:
        image.save(file, "PNG")


def demo_inputs(
    folder: Path, content: Path | None, style: Path | None, style_shows: str, overwrite: bool
) -> tuple[DemoInput, DemoInput]:
    """The content and the style image: the caller's own, or true images, which are written to the folder."""
    if content is None:
        _write_png(true_image(CONTENT_NAME, "plain"), folder / "content.png", overwrite)
        labels = {"content": CONTENT_NAME, "style": "plain"}
        first = DemoInput(image=folder / "content.png", template=caption("{}", "plain"), **labels)
    else:
        first = DemoInput(image=content, template=caption("{}", "plain"))
    if style is None:
        _write_png(true_image(STYLE_IMAGE_CONTENT, STYLE_NAME), folder / "style.png", overwrite)
        labels = {"content": STYLE_IMAGE_CONTENT, "style": STYLE_NAME}
        return first, DemoInput(image=folder / "style.png", template=caption(STYLE_IMAGE_CONTENT, "{}"), **labels)
    return first, DemoInput(image=style, template=caption(style_shows, "{}"))


def demo(
    folder: Path,
    content: Path | None = None,
    style: Path | None = None,
    *,
    base: str = "tiny-flux",
    style_shows: str = "",
    method: str = "qr",
    steps: int | None = None,
    count: int = 4,
    seed: int = 0,
    known_words: bool = True,
    filters: bool = True,
    device: str = "auto",
    overwrite: bool = False,
    on_step: Callable[[str, Progress], Any] | None = None,
    on_stage: OnStage = None,
) -> list[ClassifiedImages]:
    """Train, merge and generate; writes ``content``, ``style`` and ``merged.safetensors`` to the folder.

    Args:    content, style: the caller's own images; None takes true images, whose fusion has a ground truth.
             style_shows: what the caller's style image shows, in a word, for what no word names is learnt as style; "":
             on a built-in base the nearest content that it knows, else `ANYTHING`.
             steps: optimizer updates; None for the base's default.  count: images generated for each adapter.
             known_words: whether subject and style are called by the words of a built-in base that are nearest to the
             images (`qrlora.known_words`), not by <c> and <s>.
             filters: whether on a built-in base the subject is also learnt from filtered copies of its image
             (`qrlora.filtered_images`).
             overwrite: whether files of a demonstration with other images or settings may be replaced.
             on_step: (role, progress) after each update.  on_stage: (stage, fraction done).
    Returns: rows of images: the inputs and, if known, the ground truth; content alone, style alone, merged; with the
             classifiers' predictions.
    Raises:  ValueError, OSError: as `training.train`.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; the demonstration writes a folder: give another --output")
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    for image in (content, style):
        if image is not None:
            load_image(image, SIZE)  # one that cannot be used is refused before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    check_replaceable(folder / "merged.safetensors", overwrite)
    inputs = demo_inputs(folder, content, style, style_shows.strip() or ANYTHING, overwrite)
    settings = {"base": base, "method": method, "steps": steps, "seed": seed, "overwrite": overwrite}
    configs = [_training_config(role, one, folder, **settings) for role, one in zip(ROLES, inputs, strict=True)]
    if on_stage:
        on_stage("opening the base model", 0.0)
    opened = open_base(base, device, "float32")  # as the model cards' scores are
    check_edition_of_base(opened)
    check_images_fit_memory(opened, count)
    adapters, built_in = [], base in built_in_bases()
    if built_in and style is not None and not style_shows.strip():
        inputs = inputs[0], replace(inputs[1], template=caption(_shown_content(opened, style, on_stage), "{}"))
    for role, one, config in zip(ROLES, inputs, configs, strict=True):
        word = _word(opened, role, one, on_stage) if built_in and known_words else TRIGGERS[role]
        config = replace(config, trigger=word, prompt=one.template.replace("{}", word))
        if filters and built_in and role == "content":
            config = _with_filtered_copies(opened, one.image, config)
        report = None if on_step is None else lambda progress, role=role: on_step(role, progress)
        adapters.append(train(config, base=opened, on_step=report, on_stage=on_stage))
    merged = merge(adapters, [1.0, 1.0])
    save(merged, folder / "merged.safetensors", overwrite=True)
    return _generate_rows(opened, inputs, adapters, merged, count, seed, on_stage)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Check that an output of the demonstration replaces nothing but a demonstration's, which has both adapters beside.

    Raises: FileExistsError: another file of that name, which `overwrite` does not allow to replace.
    """
    if path.exists():
        output_files.check_writable(
            path, overwrite or all((path.parent / f"{role}.safetensors").exists() for role in ROLES)
        )


def _word(base: Base, role: Role, source: DemoInput, on_stage: OnStage) -> str:
    """What the base would call the content or the style of an image; the placeholder if it has no word near."""
    losses = _losses_of_known_words(
        base, role, source.image, source.template, f"finding a word for the {role}", on_stage
    )
    return nearest_word(losses, TRIGGERS[role])


def _shown_content(base: Base, style_image: Path, on_stage: OnStage) -> str:
    """The content that the base knows and that is nearest to what a style image shows, however far it is."""
    prompt, stage = caption("{}", TRIGGERS["style"]), "finding what the style image shows"
    losses = _losses_of_known_words(base, "content", style_image, prompt, stage, on_stage)
    return least_loss_word(losses, TRIGGERS["content"])


def _losses_of_known_words(
    base: Base, role: Role, image: Path, prompt: str, stage: str, on_stage: OnStage
) -> dict[str, float]:
    """`search_words` of all known contents or styles, with {} in the prompt for the word."""

    def on_round(done: int, count: int) -> None:
        if on_stage:
            on_stage(stage, done / count)

    on_round(0, 1)
    return search_words_of_file(base, image, prompt, role, known_words_of(role), on_round=on_round)


def _training_config(role: Role, source: DemoInput, folder: Path, **settings: Any) -> TrainConfig:
    """The settings with which the demonstration trains an adapter, under its placeholder."""
    prompt, output = source.template.replace("{}", TRIGGERS[role]), folder / f"{role}.safetensors"
    return TrainConfig(image=source.image, prompt=prompt, role=role, output=output, **settings)


def _with_filtered_copies(base: Base, image: Path, config: TrainConfig) -> TrainConfig:
    """A content's settings, with filtered copies of its image beside it, in a folder beside the adapter."""
    copies = Path(config.output).with_name("content-copies")
    write_filtered_images(image, config.prompt, copies, known_filters(), SIZE, config.overwrite)
    return replace(config, image=copies)


def _generate_rows(
    base: Base,
    inputs: tuple[DemoInput, DemoInput],
    adapters: Sequence[Adapter],
    merged: Adapter,
    count: int,
    seed: int,
    on_stage: OnStage,
) -> list[ClassifiedImages]:
    """The rows that `demo` returns."""
    content, style = inputs
    of_content, of_style = (adapter.header.trigger for adapter in adapters)
    alone, fused = caption(of_content, "plain"), caption(of_content, of_style)
    with_other = f"the style alone, with {with_article(OTHER_CONTENT)}"
    generated = (
        (f"the subject alone: “{alone}”", alone, adapters[0], content.content, content.style),
        (with_other, caption(OTHER_CONTENT, of_style), adapters[1], OTHER_CONTENT, style.style),
        (f"{MERGED}: “{fused}”", fused, merged, content.content, style.style),
    )
    given = [load_image(one.image, base.defaults.resolution).image for one in inputs]
    rows = [
        classify_images(f"a subject: “{of_content}”", given[:1], content.content, content.style),
        classify_images(f"a style: “{of_style}”", given[1:], style.content, style.style),
    ]
    if content.content in contents() and style.style in ALL_STYLES:
        truth = true_image(content.content, style.style)
        rows.append(classify_images(TRUTH, [truth], content.content, style.style))
    for k, (title, prompt, adapter, true_content, true_style) in enumerate(generated):
        if on_stage:
            on_stage("drawing", k / len(generated))
        images = generate(base, prompt, [(adapter, 1.0)], count=count, seed=seed)
        rows.append(classify_images(title, images, true_content, true_style))
    return rows
