"""The adapters of a crossed comparison: each is trained once, on true images, and kept in the comparison's folder."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..adapter import Adapter, Header
from ..baselines import FusionMethod, TrainingImage
from ..baselines.fusion_method import check_family
from ..config import TRIGGERS
from ..config.image_settings import updates_of_images
from ..config.settings import DEFAULT_SLOTS
from ..families.adapter_compatibility import check_adapter_fits_base, weight_difference
from ..files import load
from ..filtered_images import write_filtered_images
from ..initialisation_methods import has_slots
from ..known_words import least_loss_word, nearest_word, search_words_of_file
from ..text_files import read_text, write_text
from ..training import train
from ..world.captions import caption, known_words
from ..world.drawings import HANDS, contents, contents_drawn_by, known_contents
from ..world.edition import check_edition_of_base
from ..world.frames import UNFRAMED, framed_image
from ..world.ground_truth import true_image
from ..world.style_filters import known_filters
from ..world.styles import HELD_OUT_STYLES
from .adapter_names import adapter_path
from .crossed_settings import AUTO, NEAREST, CrossedSettings
from .image_pairs import contents_of_no_style_image, contents_of_style_images, split_contents
from .method_specs import parse_method_spec, spec_of_adapters
from .rank_matching import layer_shapes
from .run_job import base_digest_once, open_base_once
from .settings import ComparisonSettings
from .training_settings import training_settings

Role = Literal["content", "style", "oracle"]
PLAIN = "plain"
"""The style of content images."""
ORACLE = "oracle"
FRAME_SLOT = 2
"""Of the orthogonal basis of `ortha`, whose contents have slot 0 and whose styles have slot 1."""


class Word(NamedTuple):
    """What a content or a style is called in prompts."""

    word: str
    known: str = ""
    """The nearest known word, even if it is far; "": none was searched."""
    loss: float | None = None
    """The base's loss with that word, in times its loss with the placeholder."""


WORD_OF_ALL = Word("style")
"""A word of every caption, for an adapter that is called by none of its own."""


class RoleAdapter(NamedTuple):
    """A trained adapter, with the word that calls it and its first training image."""

    word: Word
    adapter: Adapter
    training_image: TrainingImage


def evenly(names: Sequence[str], count: int, offset: int = 0) -> list[str]:
    """``count`` names, evenly spaced. Raises ValueError: more than there are."""
    if count > len(names):
        raise ValueError(f"asked for {count} of {len(names)} names: {', '.join(names[:3])} ...")
    return [names[((2 * k + 1) * len(names) // (2 * count) + offset) % len(names)] for k in range(count)]


def check_methods(settings: CrossedSettings, specs: Sequence[str]) -> None:
    """Check all methods of a crossed comparison before the first of them is trained, which takes long.

    Raises: ValueError: no such method, setting or rule, none that adds adapters of this base, or too high a rank for a
            layer; NoRoomForSlots: for two slots in it.
    """
    for spec in specs:
        _parse_crossed_method(spec)  # before the base is opened
    adapters = CrossedAdapters(settings)
    for spec in specs:
        _check_slots(adapters, adapters.training_settings(spec))


class NoRoomForSlots(ValueError):
    """A layer of the base is too small for a method's blocks of one orthogonal basis."""


def _check_slots(adapters: "CrossedAdapters", by_role: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises NoRoomForSlots: a method with a slot for each role has no room for both in a layer."""
    for role, settings in by_role.items():
        if has_slots(settings["method"]):
            smallest = min(inputs for _, inputs in layer_shapes(adapters.base, settings["targets"]))
            needed = (DEFAULT_SLOTS[role] + 1) * settings["rank"]
            if smallest < needed:
                raise NoRoomForSlots(
                    f"{settings['method']} needs {needed} inputs for the {role}, a layer of {adapters.base.name} has "
                    f"{smallest}: give it rank={smallest // (DEFAULT_SLOTS[role] + 1)} or less, or leave it out"
                )


def _parse_crossed_method(spec: str) -> FusionMethod:
    """The method of a spec. Raises: ValueError: no such method, or one without a content and a style adapter."""
    fusion = parse_method_spec(spec, bounds=True)
    if fusion.name == "none" or not fusion.trains_style_adapter:
        raise ValueError(f"{spec} trains no content and style adapters to be crossed: leave it out of the methods")
    return fusion


class CrossedAdapters:
    """The contents and the style images of one split, with the adapters of each by any method."""

    def __init__(self, settings: CrossedSettings) -> None:
        self.settings, self.base = settings, open_base_once(settings.base, settings.device, "float32")
        check_edition_of_base(self.base)
        exact = settings.truth == "exact"
        styles = tuple(HELD_OUT_STYLES) if exact else tuple(hand for hand, about in HANDS.items() if about.held_out)
        drawn = set(contents()) if exact else set.intersection(*(set(contents_drawn_by(hand)) for hand in styles))
        self.contents = evenly([name for name in split_contents(settings.split) if name in drawn], settings.contents)
        known = [name for name in known_contents() if name in drawn]
        self.known_contents = evenly(contents_of_no_style_image(known), settings.known)
        self.shown = shown = contents_of_style_images(settings.split, known)
        columns = [evenly(shown, settings.styles, 17 * k) for k in range(settings.style_images)]
        self.styles = [(styles[k % len(styles)], tuple(c[k] for c in columns)) for k in range(settings.styles)]
        if any(len({*names}) < len(names) for _, names in self.styles):
            raise ValueError(f"style_images={settings.style_images} of {len(shown)} have one twice: take fewer")
        self.folder = settings.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_folder_is_of_base()

    def _check_folder_is_of_base(self) -> None:
        """Raises ValueError: the folder's adapters and rows are of another base of the same name, or of other weights
        that it had in another version."""
        digest = base_digest_once(self.settings.base, self.settings.device, "float32")
        path = self.folder / "base.txt"
        if path.exists():
            same = read_text(path).strip() == digest
        else:  # of an earlier version, or new
            adapter = next((self.folder / "adapters").glob("*.safetensors"), None)
            same = adapter is None or not weight_difference(self.base, load(adapter))
        if not same:
            raise ValueError(
                f"{self.folder} holds adapters and rows of another {self.base.name}, of other weights or settings of "
                "sampling: take another folder, or move it away"
            )
        if not path.exists():
            write_text(path, digest + "\n")

    def method(self, spec: str) -> FusionMethod:
        """The method of a spec. Raises: ValueError: no such method, or none that adds adapters of this base."""
        fusion = _parse_crossed_method(spec)
        if fusion.families is not None:
            check_family(fusion.name, fusion.families, self.base)
        return fusion

    def content_adapter(self, spec: str, name: str) -> RoleAdapter:
        """A content's adapter: trained now, or found in the folder."""
        word = self._word(self.settings.content_word, name, PLAIN)
        filtered = self.settings.content_filters
        return self._adapter(spec, "content", word, PLAIN, [name], [caption(word.word, PLAIN)], filtered=filtered)

    def style_adapter(self, spec: str, style: str, shown: Sequence[str]) -> RoleAdapter:
        """A style's adapter, of images that show these contents in it: trained now, or found in the folder."""
        word = self._word(self.settings.style_word, shown[0], style)
        return self._adapter(spec, "style", word, style, shown, [caption(name, word.word) for name in shown])

    def oracle_adapter(self, spec: str, k: int) -> tuple[Word, RoleAdapter]:
        """The style's word, and the adapter of the true image of the k-th content in the k-th style."""
        name, (style, shown) = self.contents[k], self.styles[k]
        word = self._word(self.settings.content_word, name, PLAIN)
        called = self._word(self.settings.style_word, shown[0], style)
        return called, self._adapter(spec, "oracle", word, style, [name], [caption(word.word, called.word)])

    def frame_adapter(self, spec: str, frame: str, shown: str) -> RoleAdapter:
        """A frame's adapter, of one image of a known content in plain style in it: trained now, or found in the folder.

        Its caption names all but the frame, which has no word: whatever the prompt, where the adapter is the frame is.
        """
        return self._adapter(spec, "style", WORD_OF_ALL, PLAIN, [shown], [caption(shown, PLAIN)], frame)

    def training_settings(self, spec: str) -> dict[str, dict]:
        """{role: settings of TrainConfig} of a method's adapters; the oracle's are of the content."""
        of_base = ComparisonSettings(base=self.settings.base, methods=(spec,), equal=self.settings.equal)
        return training_settings(self.base, spec, self.method(spec), of_base)

    def _adapter(
        self,
        spec: str,
        role: Role,
        word: Word,
        style: str,
        shown: Sequence[str],
        prompts: list[str],
        frame: str = UNFRAMED,
        filtered: bool = False,
    ) -> RoleAdapter:
        """The adapter of true images of contents in a style and a frame, and, if asked for, of filtered copies of the
        first, trained now or found in the folder."""
        called = prompts[0] if role == "oracle" else word.word  # by two words
        size = ("equal parameters",) * (self.settings.equal == "parameters")
        framed = (frame, "frame") * (frame != UNFRAMED)
        copied = ("filtered",) * filtered
        name = (spec_of_adapters(spec), role, style, *shown, *framed, called, str(self.settings.seed), *size, *copied)
        trained_as = "content" if role == "oracle" else role
        output = adapter_path(
            self.folder / "adapters", name, lambda header: self._was_trained_so(header, spec, trained_as, word)
        )
        images = output.with_suffix("")
        if not output.exists():
            images.mkdir(parents=True, exist_ok=True)
            for k, content in enumerate(shown):
                framed_image(content, style, frame).save(images / f"{k}.png")
                (images / f"{k}.txt").write_text(prompts[k])
            one: dict[str, Any] = {"image": images / "0.png", "prompt": prompts[0]}
            source = one if len(shown) == 1 else {"image": images}
            given: dict[str, Any] = {"role": trained_as, "seed": self.settings.seed, "trigger": word.word, **source}
            settings = self.training_settings(spec)[trained_as]
            given["steps"] = updates_of_images(settings["steps"], len(shown) + filtered * len(known_filters()))
            given |= {"slot": FRAME_SLOT} if framed and has_slots(settings["method"]) else {}
            if filtered:
                copies = images / "filtered"
                write_filtered_images(images / "0.png", prompts[0], copies, known_filters(), overwrite=True)
                given |= {"image": copies}
            train(base=self.base, output=output, progress=False, **{**settings, **given})
        adapter = load(output)
        check_adapter_fits_base(self.base, adapter)
        return RoleAdapter(word, adapter, TrainingImage(images / "0.png", prompts[0]))

    def _was_trained_so(self, header: Header, spec: str, role: Role, word: Word) -> bool:
        """Whether an adapter has the word and the settings of a spec."""
        settings = self.training_settings(spec)[role]
        own = {name: settings[name] for name in self.method(spec).settings(role)}
        return header.trigger == word.word and all(header.config.get(name) == value for name, value in own.items())

    def _word(self, wanted: str, content: str, style: str) -> Word:
        """What a content's own words ("<c>") or a style ("<s>") are called in prompts; an image shows both."""
        if wanted not in (AUTO, NEAREST):
            return Word(wanted)
        role = "content" if style == PLAIN else "style"
        path = self.folder / f"word-{content}-{style}.json".replace(" ", "-")
        if not path.exists():
            image = path.with_suffix(".png")
            true_image(content, style).save(image)
            prompt = caption("{}", PLAIN) if role == "content" else caption(content, "{}")
            losses = search_words_of_file(self.base, image, prompt, role, known_words(role))
            write_text(path, json.dumps(losses))  # whole or not at all: the search took long
        losses, placeholder = json.loads(path.read_text()), TRIGGERS[role]
        known = least_loss_word(losses, placeholder)
        word = known if wanted == NEAREST else nearest_word(losses, placeholder)
        return Word(word, known, losses[known] / losses[placeholder])
