"""Uploaded images: made upright sRGB, stripped of all else that the file said, and cut to a square.

What a camera writes beside the pixels, the place above all, is not kept. Files are named by their content's digest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
from dataclasses import dataclass
from typing import Any, BinaryIO

from .. import image_loading, output_files
from .work_folder import WorkFolder

LARGEST = 32 * 1024**2
"""Bytes of one file."""
KINDS = (rb"\x89PNG\r\n\x1a\n", rb"\xff\xd8\xff", rb"RIFF....WEBP", rb"GIF8[79]a", rb"....ftyp(avif|avis)")
"""First bytes of PNG, JPEG, WebP, GIF, AVIF. Pillow reads many more, some by starting other programs."""
SHOWN, SMALL = 1024, 320
"""Pixels of the longer side on a page, and of a square to show."""


@dataclass(frozen=True)
class Square:
    """The part of a picture that is trained on, in its pixels."""

    x: int
    y: int
    side: int

    @classmethod
    def middle(cls, width: int, height: int) -> Square:
        """The largest in the middle, which is what training takes by itself."""
        side = min(width, height)
        return cls((width - side) // 2, (height - side) // 2, side)


def add_uploaded_image(work: WorkFolder, file: BinaryIO, name: str) -> str:
    """Store an uploaded image; returns its id.

    Args:   name: what the person calls it; only shown.
    Raises: ValueError: too large, of no kind that browsers show, damaged.
    """
    data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{name} is larger than {LARGEST // 1024**2} MB")
    if not any(re.match(kind, data, re.DOTALL) for kind in KINDS):
        raise ValueError(f"{name} is no PNG, JPEG, WebP, GIF or AVIF")
    incoming = work.pictures / f".{secrets.token_hex(6)}"
    try:
        incoming.write_bytes(data)
        image = image_loading.load_upright(incoming)
    except ValueError as error:
        raise ValueError(str(error).replace(str(incoming), name)) from error
    finally:
        incoming.unlink(missing_ok=True)
    found = encode_upload(image, "PNG")
    digest = hashlib.sha256(found).hexdigest()[:24]
    shown = image.copy()
    shown.thumbnail((SHOWN, SHOWN))
    about = {"name": os.path.basename(name)[:80], "width": image.width, "height": image.height}
    contents = {".png": found, ".webp": encode_upload(shown, "WEBP"), ".json": json.dumps(about).encode()}
    for ending, content in contents.items():
        with output_files.atomic(work.pictures / f"{digest}{ending}") as out:
            out.write(content)
    return digest


def uploaded_image_facts(work: WorkFolder, picture: str) -> dict[str, Any]:
    """Name, width and height of an uploaded image. Raises ValueError: there is no such image."""
    if not re.fullmatch("[0-9a-f]{24}", picture) or not (path := work.pictures / f"{picture}.json").is_file():
        raise ValueError("this picture is not here any more: choose it again")
    return json.loads(path.read_bytes())


def picture_file(work: WorkFolder, picture: str) -> bytes:
    """A stored picture, whole."""
    return (work.pictures / f"{picture}.png").read_bytes()


def square_of_upload(work: WorkFolder, picture: str, square: Square) -> bytes:
    """A square of an uploaded image as training sees it, small, as a PNG file. Raises ValueError: it is not within."""
    path, crop = work.pictures / f"{picture}.png", (square.x, square.y, square.side)
    try:
        return encode_upload(image_loading.load_image(path, SMALL, crop).image, "PNG")
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), uploaded_image_facts(work, picture)["name"])) from error


def picture_name(number: int) -> str:
    """A training's picture in the folder of its job."""
    return f"picture-{number}.png"


def square_name(number: int) -> str:
    """The square of it that is trained on, to show."""
    return f"square-{number}.png"


def encode_upload(image: Any, kind: str) -> bytes:
    """An uploaded image, opened with PIL, as a file's content without anything but pixels."""
    image.info.clear()
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
