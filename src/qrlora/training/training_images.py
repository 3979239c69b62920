"""The image files of a run with their captions, crops and masks, as the settings of these names say."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import TrainConfig
from ..config.image_settings import IMAGE_SUFFIXES, Crop
from ..image_loading import MIN_SIDE, CroppedImage, load_image
from ..image_size import height_and_width
from ..text_files import read_text
from ..trigger_words import contains_word

MAX_NAMES = 8
"""Names of files in an adapter's header; of more images their number."""
log = logging.getLogger("qrlora")


@dataclass(frozen=True)
class TrainingImage:
    """An image file to train on."""

    path: Path
    caption: str
    """With the trigger word in it."""
    crop: Crop | None = None
    """What of it is used; None: the middle square."""
    mask: Path | None = None
    """Its mask's file; None: its own alpha channel."""

    def load(self, size: tuple[int, int]) -> CroppedImage:
        """The image, cropped and resized. Raises as `image_loading.load_image`."""
        return load_image(self.path, size, self.crop, self.mask)


def find_training_images(config: TrainConfig) -> list[TrainingImage]:
    """The training images in the order of `image`, those of a folder in the order of their names, with their captions.

    The caption of a single file is `prompt`. That of one of several is the text file of its name, a.txt beside a.png,
    with any run of white space as one space; without such a file it is `prompt`.

    Raises: ValueError: a folder without images; an empty caption, or one without the trigger word; no caption; a count
            of crops or masks that is not that of the images; a folder of masks that lacks one.
            OSError: a folder or caption that cannot be read.
    """
    config.checked()
    paths = _list_image_files(config.image)
    crops: Sequence[Crop | None] = config.crop or [None] * len(paths)  # pyright: ignore[reportAssignmentType]
    if len(crops) != len(paths):
        counts = f"{len(crops)} crops for {len(paths)} image{'s' * (len(paths) > 1)}"
        raise ValueError(f"{counts}: give one crop for each image, in the order of {names_text(paths)}, or none")
    if not config.has_several_images:
        captions = [config.prompt]
    else:
        captions = [_find_caption(path, config) for path in paths]
    masks = _find_masks(paths, config)
    return [TrainingImage(*one) for one in zip(paths, captions, crops, masks, strict=True)]


def with_prompt_of(images: Sequence[TrainingImage], config: TrainConfig) -> TrainConfig:
    """The config with the caption of its only image, or of its first one where it has no prompt, as its prompt."""
    if len(images) > 1 and config.prompt:
        return config
    return dataclasses.replace(config, prompt=images[0].caption)


def check_training_images(images: Iterable[TrainingImage], config: TrainConfig) -> None:
    """Read every training image once, before a base is opened. Raises as `image_loading.load_image`."""
    resolution = config.resolution
    size = height_and_width(resolution) if isinstance(resolution, str) else (MIN_SIDE, MIN_SIDE)
    for image in images:
        image.load(size)


def load_training_images(images: Sequence[TrainingImage], size: tuple[int, int]) -> list[CroppedImage]:
    """All images, cropped to a size of (height, width) pixels. Raises as `image_loading.load_image`."""
    return [image.load(size) for image in images]


def log_cropping(images: Sequence[TrainingImage], cropped: Sequence[CroppedImage]) -> None:
    """Log, in one line, how much is cut off where no crop was chosen; nothing where nothing is."""
    cut = {image.path.name: x for image, x in zip(images, cropped, strict=True) if not image.crop and x.cut_off > 0}
    if not cut:
        return
    name = max(cut, key=lambda each: cut[each].cut_off)
    height, width = cut[name].original
    x, y, side, _ = (round(edge) for edge in cut[name].used)
    worst = f"{name} ({width} x {height}) is cut to its middle, crop={x},{y},{side}, {cut[name].cut_off:.0%} cut off"
    if len(images) == 1:
        log.info("%s; crop=X,Y,SIDE moves it", worst)
    else:
        log.info(
            "%d of %d images are cut to their middle: %s; one crop for each moves them", len(cut), len(images), worst
        )


def log_masks(images: Sequence[TrainingImage], cropped: Sequence[CroppedImage]) -> None:
    """Log, in one line, of which images an alpha channel keeps the background out of the loss; nothing if of none."""
    transparent = [x.path for x, one in zip(images, cropped, strict=True) if one.mask is not None and x.mask is None]
    if transparent:
        log.info("%s: transparent parts are background and kept out of the loss", names_text(transparent))


def names_text(paths: Sequence[str | Path]) -> str:
    """Names of files without their folders, at most MAX_NAMES: "a.png, b.png and 5 more"."""
    names = ", ".join(Path(path).name for path in paths[:MAX_NAMES])
    return names if len(paths) <= MAX_NAMES else f"{names} and {len(paths) - MAX_NAMES} more"


def _list_image_files(image: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of the setting `image`, with those of its folders. Raises ValueError: a folder without images."""
    given = [Path(image)] if isinstance(image, str | Path) else [Path(one) for one in image]
    return [path for one in given for path in (_list_folder(one) if one.is_dir() else [one])]


def _list_folder(folder: Path) -> list[Path]:
    """The training images of a folder by name; neither hidden ones nor those of folders within."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    if not files:
        within = [path.name for path in sorted(folder.iterdir()) if path.is_dir()][:1]
        hint = (
            f"images of folders within it are not taken, give image={folder / within[0]}" if within else "give another"
        )
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}): {hint}")
    return sorted(files, key=lambda path: path.name)


def _find_masks(paths: Sequence[Path], config: TrainConfig) -> Sequence[Path | None]:
    """The mask of each image: the files of the setting `mask` in their order, or the file of a folder with the image's
    name, whatever its suffix; None for each where the setting is empty. Raises as `find_training_images`."""
    if not config.mask:
        return [None] * len(paths)
    folder = Path(str(config.mask))
    if isinstance(config.mask, tuple) or not folder.is_dir():
        masks = [Path(mask) for mask in ([config.mask] if isinstance(config.mask, str | Path) else config.mask)]
        if len(masks) != len(paths):
            hint = f"give one mask for each image, in the order of {names_text(paths)}, or a folder of masks"
            raise ValueError(f"{len(masks)} masks for {len(paths)} image{'s' * (len(paths) > 1)}: {hint}")
        return masks
    named = {path.stem: path for path in _list_folder(folder)}
    for path in paths:
        if path.stem not in named:
            raise ValueError(f"{folder} has no mask named {path.stem}: add one, all white if all of {path} counts")
        if named[path.stem].resolve() == path.resolve():
            raise ValueError(f"{folder} holds the images themselves: masks need a folder of their own")
    return [named[path.stem] for path in paths]


def _find_caption(path: Path, config: TrainConfig) -> str:
    """The caption of one of several training images, from the text file of its name.

    Raises: ValueError: none, an empty one, one without the trigger word, or a file that is not UTF-8.
    """
    file, trigger = path.with_suffix(".txt"), config.trigger
    example = f"a {trigger}" if config.role == "content" else f"a cat in {trigger} style"
    caption = " ".join(read_text(file).split()) if file.is_file() else config.prompt
    source = file if file.is_file() else f"the prompt of {path}"
    if not caption and file.is_file():
        raise ValueError(f"{file} is empty: write the caption of {path.name}, such as {example!r}, or delete it")
    if not caption:
        raise ValueError(f"{path} has no caption: write it into {file.name} beside it, or give prompt={example!r}")
    if not contains_word(caption, trigger):
        hint = f"try {example!r}, or name its own: trigger=WORD"
        raise ValueError(f"{source}: the caption {caption!r:.200} lacks the trigger word {trigger!r}: {hint}")
    return caption
