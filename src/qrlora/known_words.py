"""Known words: what a base would call the content or the style of an image.

An adapter trained under a word that the base knows, near to what it is to learn, starts from sharp images of almost the
right thing; under a placeholder it starts from the mean of all things.  docs/findings.md has the figures.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import TRIGGERS
from .config.type_checks import MAX_SEED, check_instance, whole_number
from .devices import check_fits_memory
from .families import Base, Condition
from .image_loading import CroppedImage, load_image
from .noising import Noising, noising_of
from .training.losses import denoising_losses
from .training_example import encode_training_examples

COPIES = {"content": 4, "style": 16}
"""Noisy copies of an image for each word that is tried: contents are many."""
FINALISTS = 4
"""Words of a search that meet all copies."""
NEAR = 2.0
"""A known word is near a style if the base's loss with it is less than so many times that with the placeholder.  Of six
styles of the development split four had a word that near (1.1 to 1.6 times), and their sums gained by it; two had none
(2.2 and 2.8), and lost."""


COMMON_STYLES = (
    "photograph, black and white photograph, polaroid, watercolor, oil painting, acrylic painting, gouache, fresco, "
    "impressionist, expressionist, cubist, pointillist, abstract, surrealist, art nouveau, art deco, pop art, "
    "graffiti, pencil sketch, charcoal drawing, ink drawing, crosshatching, pastel, crayon drawing, chalkboard, "
    "line art, blueprint, woodcut, linocut, etching, screen print, stencil, comic book, manga, anime, cartoon, "
    "pixel art, flat vector, low poly, 3d render, claymation, origami, paper cutout, collage, stained glass, "
    "mosaic, tapestry, embroidery, knitted, neon, sepia, vintage, ukiyo-e, chinese ink painting, medieval "
    "manuscript, bas-relief, marble, bronze"
).split(", ")
"""Styles to try on a base whose words are not known; chosen by us, and not by a measurement."""
COMMON_CONTENTS = (
    "dog, cat, horse, cow, sheep, bird, chicken, duck, fish, rabbit, bear, fox, lion, tiger, elephant, monkey, "
    "frog, turtle, snake, butterfly, dragon, robot, man, woman, child, baby, face, doll, teddy bear, toy, statue, "
    "mask, car, truck, bus, train, bicycle, motorcycle, boat, airplane, rocket, house, castle, church, tower, "
    "bridge, street, tree, flower, leaf, mushroom, fruit, apple, cake, bread, bowl, cup, teapot, bottle, vase, "
    "candle, lamp, clock, chair, sofa, table, bed, book, pen, guitar, piano, drum, camera, phone, computer, shoe, "
    "hat, bag, backpack, dress, coat, glasses, watch, ring, necklace, ball, umbrella, knife"
).split(", ")


def least_loss_word(losses: Mapping[str, float], placeholder: str) -> str:
    """The known word with the least loss, however far it is, of the losses of `nearest_word`."""
    return min((x for x in losses if x != placeholder), key=losses.__getitem__)


def nearest_word(losses: Mapping[str, float], placeholder: str) -> str:
    """The known word with the least loss if it is `NEAR`, else the placeholder.

    Args:   losses: of `word_losses`, for the placeholder, which stands for any content or any style, and for words.
    Raises: ValueError: losses without the placeholder's, or of it alone.
    """
    if placeholder not in losses or len(losses) < 2:
        raise ValueError(f"needs losses of {placeholder} and of a word, got {', '.join(losses) or 'none'}")
    word = least_loss_word(losses, placeholder)
    return word if losses[word] < NEAR * losses[placeholder] else placeholder


def word_losses(
    base: Base,
    image: CroppedImage,
    prompt: str,
    words: Iterable[str],
    copies: int = 16,
    seed: int = 0,
    on_word: Callable[[int, int], Any] | None = None,
) -> dict[str, float]:
    """The base's denoising loss on an image with each word in its prompt.

    All words meet the same noise and the same timesteps, drawn as in the base's training of a style.  `search_words`
    finds the best of many words in a third of the time.

    Args:    base: open, with its text encoders and VAE.
             prompt: the image's caption with {} for the word: "a dress in {} style" of a style image, "a {} in plain
             style" of a content image.
             copies: noisy copies of the image.  on_word: (words done, of how many) after each.
    Returns: {word: loss}, unitless, the best word (the least loss) first.
    Raises:  ValueError: a prompt without {} or with several; no words; no copies, or more than memory holds.
    """
    noisy = _noisy_copies(base, image, prompt, words, copies, seed)
    losses = {}
    for k, word in enumerate(noisy.words):
        losses[word] = float(noisy.losses([k], range(copies)).mean())
        if on_word is not None:
            on_word(k + 1, len(noisy.words))
    return _best_first(losses)


def search_words(
    base: Base,
    image: CroppedImage,
    prompt: str,
    placeholder: str,
    words: Iterable[str],
    copies: int = 16,
    seed: int = 0,
    finalists: int = FINALISTS,
    on_round: Callable[[int, int], Any] | None = None,
) -> dict[str, float]:
    """`word_losses` of the best of many words, by successive halving (Jamieson and Talwalkar, arXiv 1502.07943).

    All words meet an eighth of the noisy copies, 1 or more: the noisiest, in which words differ most, and others evenly
    spaced in noise, by which some styles are told apart.  The better eighth of the words, at least twice the finalists,
    goes on to as many copies again, then the better half, at least the finalists, until all copies are met.  The noise
    is that of `word_losses` with the same seed and shared by all words, so that differences are paired and the losses
    returned are those of `word_losses`.  The best word may be lost in an early round: on three built-in bases
    none was of 31 images of the development split, one, by a word with 0.6 % more loss, of 30 of the test split.

    Args:    placeholder: stands for any content or any style, for `nearest_word`; meets all copies.
             finalists: words that meet all copies.
             on_round: (predictions done, of how many) after each forward pass.
             The others are those of `word_losses`.
    Returns: {word: loss} of the placeholder and the finalists, the least loss first.
    Raises:  ValueError: as `word_losses`; no placeholder; fewer than 1 finalist.
    """
    if whole_number("finalists", finalists) < 1:
        raise ValueError(f"finalists must be 1 or more, got {finalists}")
    noisy = _noisy_copies(base, image, prompt, words, copies, seed, [placeholder])
    order, rounds = _spread_in_noise(noisy.time), _rounds(len(noisy.words) - 1, copies, finalists)
    total = sum((1 + words) * (end - start) for words, start, end in rounds)
    sums, done = torch.zeros(len(noisy.words)), 0  # 0 is the placeholder
    best = [*range(1, len(sums))]
    for count, start, end in rounds:
        left = [0, *best[:count]]
        report = None if on_round is None else lambda now, done=done: on_round(done + now, total)
        sums[left] += noisy.losses(left, order[start:end], report).sum(1)
        done += len(left) * (end - start)
        best = sorted(left[1:], key=sums.__getitem__)
    return _best_first({noisy.words[k]: float(sums[k]) / copies for k in (0, *best[:finalists])})


def search_words_of_file(
    base: Base,
    image: str | Path,
    prompt: str,
    role: str,
    words: Iterable[str],
    seed: int = 0,
    finalists: int = FINALISTS,
    on_round: Callable[[int, int], Any] | None = None,
) -> dict[str, float]:
    """`search_words` for what an image file shows, in the base's resolution, beside the placeholder of its role.

    Args:    role: "content": what it shows; "style": how.  The others are those of `search_words`.
    Returns: as `search_words`. Raises as it does, and OSError: no such image.
    """
    cropped = load_image(image, base.defaults.resolution)
    return search_words(base, cropped, prompt, TRIGGERS[role], words, COPIES[role], seed, finalists, on_round)


def _rounds(words: int, copies: int, finalists: int) -> list[tuple[int, int, int]]:
    """The rounds of `search_words`: (words that take part, copies that they have met, copies that they then have)."""
    end = max(1, copies // 8)
    rounds = [(words, 0, end)]
    while end < copies:
        share, least = (8, 2 * finalists) if len(rounds) == 1 else (2, finalists)
        words = min(words, max(least, math.ceil(words / share)))
        rounds.append((words, end, min(2 * end, copies)))
        end = rounds[-1][2]
    return rounds


def _spread_in_noise(time: Tensor) -> list[int]:
    """The numbers of noisy copies in an order whose first ones, however many, are spread over the noise levels: the
    noisiest, the one half-way, those at the quarters and so on (van der Corput's sequence in base 2)."""
    noisiest_first = time.argsort(descending=True, stable=True).tolist()
    bits = (len(noisiest_first) - 1).bit_length()
    places = (sum(1 << (bits - 1 - bit) for bit in range(bits) if k >> bit & 1) for k in range(1 << bits))
    return [noisiest_first[place] for place in places if place < len(noisiest_first)]


def _best_first(losses: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(losses.items(), key=lambda item: item[1]))


@dataclass(frozen=True)
class _NoisyCopies:
    """Noisy copies of one image, which captions with several words are tried on."""

    base: Base
    words: Sequence[str]
    conditions: Condition
    """A row for each word."""
    noising: Noising
    clean: Tensor
    """(copies, c, h, w), as the noise is."""
    noise: Tensor
    time: Tensor
    """(copies,), on the CPU."""
    loss_weights: Tensor | None

    @torch.no_grad()
    def losses(
        self, words: Sequence[int], copies: Sequence[int], on_pass: Callable[[int], Any] | None = None
    ) -> Tensor:
        """The losses (words, copies) of these words on these copies, on the CPU; on_pass: (predictions done) after each
        forward pass, which has at most as many rows as there are copies of the image."""
        pairs = [(word, copy) for word in words for copy in copies]
        found, at_once = [], len(self.clean)
        with self.base.on_device():
            for start in range(0, len(pairs), at_once):
                rows, of_image = map(list, zip(*pairs[start : start + at_once], strict=True))
                inputs = (self.clean[of_image], self.noise[of_image], self.time[of_image])
                condition = self.conditions.rows(rows).to(self.base.device)
                of_base = (self.base.family.predict, self.base.model, self.noising)
                found.append(denoising_losses(*of_base, *inputs, condition, self.loss_weights).cpu())
                if on_pass is not None:
                    on_pass(start + len(rows))
        return torch.cat(found).view(len(words), len(copies))


def _noisy_copies(
    base: Base,
    image: CroppedImage,
    prompt: str,
    words: Iterable[str],
    copies: int,
    seed: int,
    placeholder: Sequence[str] = (),
) -> _NoisyCopies:
    """Noisy copies of an image with the conditions of a prompt with each word, those of a placeholder first.

    Raises: ValueError: as `word_losses`.
    """
    check_instance("base", base, Base, "qrlora.open_base opens one")
    check_instance("image", image, CroppedImage, "qrlora.image_loading.load_image makes one")
    check_instance("prompt", prompt, str)
    if isinstance(words, str) or not isinstance(words, Iterable):
        raise ValueError(f"words is a list of words, got {words!r:.80}")
    tried = [*placeholder, *(word for word in dict.fromkeys(words) if word not in placeholder)]
    if wrong := [word for word in tried if not isinstance(word, str) or not word.strip()]:
        raise ValueError(f"words must be text, and not empty, got {wrong[0]!r:.80}")
    if prompt.count("{}") != 1 or len(tried) == len(placeholder) or whole_number("copies", copies) < 1:
        raise ValueError(
            f"needs words, a prompt with one {{}} for them and 1 copy or more, got "
            f"{len(tried) - len(placeholder)} words, {prompt!r} and {copies}"
        )
    if not 0 <= whole_number("seed", seed) <= MAX_SEED:
        raise ValueError(f"seed must be in 0..{MAX_SEED}, got {seed}")
    captions = [prompt.replace("{}", word) for word in tried]
    example = encode_training_examples(base, [image], captions[:1])
    needed = 4 * copies * example.latents.nbytes  # noise, noisy latents, prediction and target
    check_fits_memory(f"copies={copies}", needed, base.device, "take fewer")
    size = base.size_conditioning(image.original, image.corner, (image.image.height, image.image.width))
    conditions = base.encode_prompts(captions, [size] * len(captions))
    noising = noising_of(base.pipe.scheduler.config, 0.0, base.defaults.for_run("style", "qr").timestep_sampling)
    generator = torch.Generator("cpu").manual_seed(seed)
    clean = example.latents.to(base.device).expand(copies, *example.latents.shape[1:])
    noise = torch.randn(clean.shape, generator=generator).to(base.device)
    time = noising.sample_time(copies, generator)
    return _NoisyCopies(base, tried, conditions, noising, clean, noise, time, example.loss_weights)
