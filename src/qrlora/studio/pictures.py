"""Pictures that were brought along: made upright sRGB, stripped of all else that the file said, and cut to a square.

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
from .jobs import Work

LARGEST = 32 * 1024**2
"""Bytes of one file."""
KINDS = (rb"\x89PNG\r\n\x1a\n", rb"\xff\xd8\xff", rb"RIFF....WEBP", rb"GIF8[79]a", rb"....ftyp(avif|avis)")
"""First bytes of PNG, JPEG, WebP, GIF, AVIF. Pillow reads many more, some by starting other programs."""
SHOWN = 1024
"""Pixels of the longer side on a page."""


@dataclass(frozen=True)
class Square:
    """The part of a picture that is learnt, in its pixels."""

    x: int
    y: int
    side: int

    @classmethod
    def middle(cls, width: int, height: int) -> Square:
        """The largest in the middle, which is what training takes by itself."""
        side = min(width, height)
        return cls((width - side) // 2, (height - side) // 2, side)

    def checked(self, width: int, height: int) -> Square:
        """This square. Raises ValueError: it is not within a picture of that size, or too small."""
        inside = self.x >= 0 and self.y >= 0 and self.x + self.side <= width and self.y + self.side <= height
        if not inside or self.side < image_loading.MIN_SIDE:
            least = image_loading.MIN_SIDE
            where = f"{self.side} pixels at {self.x}, {self.y}"
            raise ValueError(f"a square of {where} is not in {width} x {height} pixels, or under {least}")
        return self


def add_picture(work: Work, file: BinaryIO, name: str) -> str:
    """Store a picture; its id.

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
    found = encoded(image, "PNG")
    digest = hashlib.sha256(found).hexdigest()[:24]
    shown = image.copy()
    shown.thumbnail((SHOWN, SHOWN))
    about = {"name": os.path.basename(name)[:80], "width": image.width, "height": image.height}
    contents = {".png": found, ".webp": encoded(shown, "WEBP"), ".json": json.dumps(about).encode()}
    for ending, content in contents.items():
        with output_files.atomic(work.pictures / f"{digest}{ending}") as out:
            out.write(content)
    return digest


def picture_facts(work: Work, picture: str) -> dict[str, Any]:
    """Name, width and height of a stored picture. Raises ValueError: there is no such picture."""
    if not re.fullmatch("[0-9a-f]{24}", picture) or not (path := work.pictures / f"{picture}.json").is_file():
        raise ValueError("this picture is not here any more: choose it again")
    return json.loads(path.read_bytes())


def cut(work: Work, picture: str, square: Square) -> bytes:
    """The square of a stored picture as a PNG file."""
    about = picture_facts(work, picture)
    square.checked(about["width"], about["height"])
    image = image_loading.load_upright(work.pictures / f"{picture}.png")
    return encoded(image.crop((square.x, square.y, square.x + square.side, square.y + square.side)), "PNG")


def encoded(image: Any, kind: str) -> bytes:
    """A PIL image as a file's content, without anything but pixels."""
    image.info.clear()
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
