"""Write figures and images to files, whole or not at all, and check their formats beforehand. [PIL]"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, PngImagePlugin

from ..output_files import atomic
from . import missing_glyphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, path: str | Path, overwrite: bool = True) -> Path:
    """Save a figure whole or not at all; the format is the suffix's (.png, .pdf, .svg ...).

    Raises: OSError: see `outputs.atomic`. ValueError: a suffix that is no format of figures.
    """
    kind = figure_format(path)
    missing_glyphs.add_fallback_fonts(figure)
    with atomic(path, overwrite) as file:
        figure.savefig(file, format=kind)
    return Path(path)


def save_picture(picture: Image.Image, path: str | Path, made_with: str = "", overwrite: bool = True) -> Path:
    """Save an image without a figure around it, whole or not at all; a PNG's metadata also hold `made_with`.

    Raises: OSError: see `outputs.atomic`. ValueError: a suffix that is no format of images.
    """
    kind = picture_format(path)
    info = PngImagePlugin.PngInfo()
    info.add_text("qrlora", made_with)
    with atomic(path, overwrite) as file:
        picture.save(file, format=kind, pnginfo=info)
    return Path(path)


ANIMATED = ("WEBP", "GIF", "PNG")
"""Formats of PIL's that hold several frames and any browser shows."""


def animation_format(path: str | Path) -> str:
    """The format of a file of several frames by its name, to save an animation. Raises ValueError: none."""
    kind = Image.registered_extensions().get(Path(path).suffix.lower(), "")
    if kind not in ANIMATED:
        raise ValueError(f"{Path(path).name}: no format of videos that is written; try {Path(path).stem}.webp")
    return kind


def save_animation(
    frames: Sequence[Image.Image], path: str | Path, fps: int, made_with: str = "", overwrite: bool = True
) -> Path:
    """Write frames as one file that plays them again and again, whole or not at all; a PNG's metadata also hold
    `made_with`.

    Raises: OSError: see `outputs.atomic`.  ValueError: a suffix that is no format of several frames.
    """
    kind = animation_format(path)
    info = PngImagePlugin.PngInfo()
    info.add_text("qrlora", made_with)
    options = {"save_all": True, "append_images": list(frames[1:]), "duration": round(1000 / fps), "loop": 0}
    with atomic(path, overwrite) as file:
        frames[0].save(file, format=kind, pnginfo=info, **options)
    return Path(path)


def made_with(path: str | Path) -> str:
    """The `made_with` in a PNG's metadata, as `save_picture` wrote it; "" if there is none, or it is no image."""
    try:
        with Image.open(path) as picture:
            return str(picture.info.get("qrlora", ""))
    except (OSError, ValueError):
        return ""


def figure_format(path: str | Path) -> str:
    """The format in which matplotlib saves a figure under a file name. Raises ValueError: none."""
    from matplotlib.backend_bases import FigureCanvasBase

    path = Path(path)
    known = FigureCanvasBase.get_supported_filetypes().keys() - {"pgf"}  # which needs LaTeX
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"{path.name}: a plot's name ends in {', '.join(sorted(known))}; try {path.stem}.png")
    return path.suffix[1:].lower()


def picture_format(path: str | Path) -> str:
    """The format in which PIL saves an image under a file name; tested by writing, for some formats are read-only or
    without colour.

    Raises: ValueError: none.
    """
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    try:
        Image.new("RGB", (16, 16)).save(io.BytesIO(), format=kind or "none")
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path}: no picture format that can be written; try {path.stem or 'picture'}.png") from error
    return kind
