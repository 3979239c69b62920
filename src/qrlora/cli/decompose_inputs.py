"""What `qrlora decompose` is given, checked before anything is drawn: adapters, pictures, words, judges."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import optional_dependencies
from ..adapter import Header
from ..built_in_bases import built_in_bases
from ..comparison.known_word_scale import (
    ROLES,
    Judge,
    classifiers_as_judges,
    encoders_as_judges,
    known_word_pairs,
)
from ..comparison.settings import ENCODERS_OF_THE_PAPER
from ..comparison.two_adapters import AdapterPair, words_to_draw
from ..config import SampleConfig
from ..config.image_settings import parse_crops
from ..evaluation import Encoder, open_encoder
from ..families import Base
from ..image_loading import MIN_SIDE, CroppedImage, load_image
from ..world.captions import caption
from . import adapter_files, console, open_for_sampling

WITHOUT_HUB = "efficientnet-lite0"
"""An encoder whose weights are in a package, for where no hub can be reached."""


@dataclass(frozen=True)
class DecomposeInputs:
    """The inputs of one sheet."""

    config: SampleConfig
    base: Base
    pair: AdapterPair
    known: Mapping[str, Sequence[str]]
    """The known things under "content", the known styles under "style"."""
    pictures: Mapping[str, Any]
    """The pictures that the adapters were trained on, so far as they were found."""
    missing: str = ""
    """Which picture was not found, in a sentence."""

    @property
    def known_pairs(self) -> list[tuple[str, str]]:
        """`known_word_pairs` of the known words."""
        return known_word_pairs(*(self.known[role] for role in ROLES))

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of sampling that all images share."""
        return {name: getattr(self.config, name) for name in ("negative_prompt", "steps", "guidance", "size")}


def read_inputs(
    config: SampleConfig,
    given: Mapping[str, Mapping[str, Any]],
    skip_text_encoders: bool,
    on_stage: Callable[[str], Any],
) -> DecomposeInputs:
    """Read adapters and pictures, open the base, choose the words.

    Args:   config: its adapters are the content's and the style's file.
            given: by role, "images", "words" that call the adapters, and "known" words; empty where none was given.
    Raises: ValueError, OSError: two adapters of one role, or one file for both; no word that calls one; a picture that
            is none, or too small for the adapter's crop; a word that the base does not know; as
            `open_for_sampling.open_base_and_adapters`.
    """
    files: dict[Any, str] = dict(zip(ROLES, config.adapters, strict=True))
    adapters = {role: adapter_files.read_adapter(path, skip_text_encoders) for role, path in files.items()}
    for role, path in files.items():
        _check_role(path, role, adapters[role].header)
    if os.path.realpath(files["content"]) == os.path.realpath(files["style"]):
        raise ValueError(f"{files['content']} is given as content and as style: give two files")
    words = {role: given["words"][role].strip() or _trigger(files[role], role, adapters[role].header) for role in ROLES}
    pair = AdapterPair(**adapters, words=words)
    found = {role: given["images"][role] or _picture_beside(files[role], adapters[role].header) for role in ROLES}
    for role, path in found.items():
        if path:  # refused before a base is opened, which takes long
            _load_picture(path, MIN_SIDE, files[role], role, adapters[role].header)
    name = config.base or open_for_sampling.base_of_adapters([*adapters.values()])
    unlike = [*words.values(), *(x.header.prompt for x in adapters.values())]
    known = {role: words_to_draw(name, name in built_in_bases(), role, given["known"][role], unlike) for role in ROLES}
    config = dataclasses.replace(config, prompt=caption(words["content"], words["style"]), base=name)
    config, base = open_for_sampling.open_base_of_adapters(config, [*adapters.values()], True, on_stage)
    side = base.defaults.resolution
    pictures = {
        role: _load_picture(path, side, files[role], role, adapters[role].header).image
        for role, path in found.items()
        if path
    }
    lacking = [_not_found(files[role], role, adapters[role].header) for role in ROLES if role not in pictures]
    return DecomposeInputs(config, base, pair, known, pictures, "; ".join(lacking))


def judges_of(inputs: DecomposeInputs, encoders: Sequence[str]) -> tuple[dict[str, Judge], str]:
    """What judges content and style, and its name: the encoders; without any the classifiers for a built-in base, which
    see its drawings alone, and the paper's encoders for another.

    Raises: ValueError, OSError: a picture was not found; an encoder cannot be opened.
    """
    if inputs.missing:
        raise ValueError(inputs.missing)
    if not encoders and inputs.base.name in built_in_bases():
        return classifiers_as_judges(), "the built-in bases' classifiers"
    opened = [open_encoder(name, inputs.config.device) for name in encoders] or _encoders_of_paper(inputs.config.device)
    judges = encoders_as_judges(opened)
    return judges, " and ".join(x.name for x in opened if x.features in judges.values())


def _encoders_of_paper(device: str) -> list[Encoder]:
    """The paper's encoders; where no hub can be reached, with a warning, the one that needs none.

    Raises: OSError: neither can be opened.
    """
    try:
        return [open_encoder(name, device) for name in ENCODERS_OF_THE_PAPER]
    except OSError as error:
        if lacking := optional_dependencies.missing_extra_hint("encoders", reason=WITHOUT_HUB):
            raise OSError(f"{error}; without a hub {lacking}") from error
        console.warn(f"{error}; {WITHOUT_HUB} judges instead, which knows what is shown better than how")
        return [open_encoder(WITHOUT_HUB, device)]


def _check_role(path: str, role: str, header: Header) -> None:
    """Raises ValueError: a file in the place of a role whose adapter it is not."""
    if header.role not in ("", role):
        merge = "give the two files that went into it"
        hint = merge if header.role == "merged" else "give the content's file first, then the style's"
        raise ValueError(f"{path} is a {header.role} adapter, in the {role}'s place: {hint}")


def _trigger(path: str, role: str, header: Header) -> str:
    """The word that calls an adapter in prompts. Raises ValueError: its file names none."""
    if not header.trigger:
        raise ValueError(f"{path} names no trigger word: give the one that calls it in prompts with --{role}-word")
    return header.trigger


def _picture_beside(path: str, header: Header) -> Path | None:
    """The picture that an adapter was trained on, the first of several, if it is beside the adapter's file."""
    name = Path(_picture_name(header)).name  # a stranger's header names no file elsewhere
    place = Path(path).with_name(name) if name else None
    return place if place and place.is_file() else None


def _picture_name(header: Header) -> str:
    """The name of an adapter's picture, of several the first; "" if its file names none."""
    name = str(header.config.get("image") or "")
    return name.split(", ")[0] if "images" in header.config else name


def _not_found(path: str, role: str, header: Header) -> str:
    name = _picture_name(header)
    picture = f"{name}, which {path} was trained on, is not beside it" if name else f"{path} names no picture"
    return f"{picture}: give it with --{role}-image"


def _load_picture(path: Path, side: int, file: str, role: str, header: Header) -> CroppedImage:
    """What of its picture, the first of several, an adapter was trained on: its crop, or the middle.

    Raises: OSError: as `load_image`.  ValueError: as it does; a crop that is none, or not within the picture.
    """
    try:
        crops = header.config.get("crop") or ""
        crop = next(iter(parse_crops(crops if isinstance(crops, list) else str(crops))), None)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    try:
        return load_image(path, side, crop)
    except ValueError as error:
        if crop is None:
            raise
        trained_on = f"{file} was trained on crop={','.join(map(str, crop))} of its picture"
        raise ValueError(f"{error}; {trained_on}: give that picture, whole, with --{role}-image") from error
