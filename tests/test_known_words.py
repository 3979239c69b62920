"""The word for a style that the base's own loss chooses."""

import pytest
import torch

from qrlora.families import open_base
from qrlora.image_loading import load_image
from qrlora.known_words import NEAR, nearest_word, word_losses
from qrlora.training import train
from qrlora.world.ground_truth import true_image
from qrlora.world.styles import STYLES


@pytest.fixture(scope="module")
def base():
    return open_base("tiny-flux", "cpu", "float32")


@pytest.mark.parametrize("style", ["blueprint", "gold", "mosaic"])
def test_a_picture_in_a_style_that_the_base_knows_is_best_explained_by_its_word(base, tmp_path, style):
    true_image("backpack", style).save(tmp_path / "picture.png")
    losses = word_losses(base, load_image(tmp_path / "picture.png", 128), "a backpack in {} style", [*STYLES], 4)
    assert next(iter(losses)) == style and list(losses.values()) == sorted(losses.values())


def test_the_loss_under_a_word_is_that_of_training_with_it(base, tmp_path):
    """Against the mean loss of updates that change nothing (rate 1e-30), over other noise than the search's."""
    true_image("backpack", "dusk").save(tmp_path / "picture.png")
    prompt = "a backpack in {} style"
    searched = word_losses(base, load_image(tmp_path / "picture.png", 128), prompt, ["pop"], 96)["pop"]
    losses: list[float] = []
    train(
        base=base,
        image=tmp_path / "picture.png",
        role="style",
        trigger="pop",
        prompt=prompt.format("pop"),
        output=tmp_path / "adapter.safetensors",
        learning_rate=1e-30,
        steps=12,
        rank=1,
        progress=False,
        on_step=lambda progress: losses.append(progress.loss),
    )
    assert sum(losses) / 12 == pytest.approx(searched, rel=0.15)


def test_equal_noise_for_every_word_and_a_prompt_without_a_place_for_it_is_refused(base, tmp_path):
    true_image("backpack", "dusk").save(tmp_path / "picture.png")
    image = load_image(tmp_path / "picture.png", 128)
    alone = word_losses(base, image, "a backpack in {} style", ["pop"], 2)
    assert word_losses(base, image, "a backpack in {} style", ["gold", "pop"], 2)["pop"] == pytest.approx(
        alone["pop"], rel=1e-5
    )
    for prompt, words in (("a backpack", ["pop"]), ("{} in {} style", ["pop"]), ("a backpack in {} style", [])):
        with pytest.raises(ValueError, match="one {} for them"):
            word_losses(base, image, prompt, words)


def test_the_choice_leaves_the_base_without_gradients_or_adapters(base, tmp_path):
    true_image("backpack", "dusk").save(tmp_path / "picture.png")
    word_losses(base, load_image(tmp_path / "picture.png", 128), "a backpack in {} style", ["pop"], 1)
    assert all(parameter.grad is None for parameter in base.model.parameters()) and torch.is_grad_enabled()


def test_a_word_that_is_not_near_leaves_the_placeholder():
    assert nearest_word({"<s>": 1.0, "gold": NEAR - 0.01, "pop": 3.0}, "<s>") == "gold"
    assert nearest_word({"<s>": 1.0, "gold": NEAR, "pop": 3.0}, "<s>") == "<s>"
    assert nearest_word({"<s>": 2.0, "gold": 1.0}, "<s>") == "gold"
