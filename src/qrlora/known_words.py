"""Known words: what a base would call the content or the style of an image.

An adapter trained under a word that the base knows, near to what it is to learn, starts from sharp images of almost the
right thing; under a placeholder it starts from the mean of all things.  docs/findings.md has the figures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .devices import check_fits_memory
from .families import Base
from .image_loading import CroppedImage
from .noising import noising_of
from .training.training_loop import denoising_loss
from .training_example import encode_training_examples

COPIES = {"content": 4, "style": 16}
"""Noisy copies of an image for each word that is tried: contents are many."""
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


def nearest_word(losses: Mapping[str, float], placeholder: str) -> str:
    """The known word with the least loss if it is `NEAR`, else the placeholder.

    Args: losses: of `word_losses`, for the placeholder, which stands for any content or any style, and for known words.
    """
    word = min((x for x in losses if x != placeholder), key=losses.__getitem__)
    return word if losses[word] < NEAR * losses[placeholder] else placeholder


@torch.no_grad()
def word_losses(
    base: Base,
    image: CroppedImage,
    prompt: str,
    words: Sequence[str],
    copies: int = 16,
    seed: int = 0,
    on_word: Callable[[int, int], Any] | None = None,
) -> dict[str, float]:
    """The base's denoising loss on an image with each word in its prompt.

    All words meet the same noise and the same timesteps, drawn as in the base's training of a style.

    Args:    base: open, with its text encoders and VAE.
             prompt: the image's caption with {} for the word: "a dress in {} style" of a style image, "a {} in plain
             style" of a content image.
             copies: noisy copies of the image.  on_word: (words done, of how many) after each.
    Returns: {word: loss}, unitless, the best word (the least loss) first.
    Raises:  ValueError: a prompt without {} or with several; no words; no copies, or more than memory holds.
    """
    if isinstance(words, str):
        raise ValueError(f"words is a list of words, got {words!r}")
    if prompt.count("{}") != 1 or not words or copies < 1:
        raise ValueError(
            f"needs words, a prompt with one {{}} for them and 1 copy or more, got {len(words)} words, {prompt!r} and "
            f"{copies}"
        )
    captions = [prompt.replace("{}", word) for word in words]
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
    losses = {}
    with base.on_device():
        for k, word in enumerate(words):
            condition = conditions.rows([k] * copies).to(base.device)
            loss = denoising_loss(
                base.family.predict, base.model, noising, clean, noise, time, condition, example.loss_weights
            )
            losses[word] = float(loss)
            if on_word is not None:
                on_word(k + 1, len(words))
    return dict(sorted(losses.items(), key=lambda item: item[1]))
