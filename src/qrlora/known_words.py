"""Known words: what a base would call the content or the style of an image.

An adapter trained under a word that the base knows, near to what it is to learn, starts from sharp images of almost the
right thing; under a placeholder it starts from the mean of all things.  docs/findings.md has the figures.
"""

from collections.abc import Mapping, Sequence

import torch

from .families import Base
from .image_loading import CroppedImage
from .noising import noising_of
from .training.training_loop import denoising_loss
from .training_example import encode_training_examples

NEAR = 2.0
"""A known word is near a style if the base's loss with it is less than so many times that with the placeholder.  Of six
styles of the development split four had a word that near (1.1 to 1.6 times), and their sums gained by it; two had none
(2.2 and 2.8), and lost."""


def nearest_word(losses: Mapping[str, float], placeholder: str) -> str:
    """The known word with the least loss if it is `NEAR`, else the placeholder.

    Args: losses: of `word_losses`, for the placeholder, which stands for any content or any style, and for known words.
    """
    word = min((x for x in losses if x != placeholder), key=losses.__getitem__)
    return word if losses[word] < NEAR * losses[placeholder] else placeholder


@torch.no_grad()
def word_losses(
    base: Base, image: CroppedImage, prompt: str, words: Sequence[str], copies: int = 16, seed: int = 0
) -> dict[str, float]:
    """The base's denoising loss on an image with each word in its prompt.

    All words meet the same noise and the same timesteps, drawn as in the base's training of a style.

    Args:    base: open, with its text encoders and VAE.
             prompt: the image's caption with {} for the word: "a dress in {} style" of a style image, "a {} in plain
             style" of a content image.
             copies: noisy copies of the image.
    Returns: {word: loss}, unitless, the best word (the least loss) first.
    Raises:  ValueError: a prompt without {} or with several; no words.
    """
    if prompt.count("{}") != 1 or not words:
        raise ValueError(f"needs words and a prompt with one {{}} for them, got {len(words)} words and {prompt!r}")
    captions = [prompt.format(word) for word in words]
    example = encode_training_examples(base, [image], captions[:1])
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
    return dict(sorted(losses.items(), key=lambda item: item[1]))
