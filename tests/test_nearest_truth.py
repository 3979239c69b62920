"""The exact second measure of a fusion: nearer to the true image than to every wrong one."""

import pytest
import torch
import torch.nn.functional as F

from qrlora.families import open_base
from qrlora.world.drawings import HANDS, PLAIN_HAND, contents, contents_drawn_by, held_out_contents
from qrlora.world.ground_truth import true_images
from qrlora.world.nearest_truth import nearest_truth_margin
from qrlora.world.random_styles import random_style
from qrlora.world.styles import ALL_STYLES

CONTENT, STYLE = held_out_contents()[7], "dusk"


def test_a_true_image_is_right_after_the_round_trip_through_a_vae_too():
    vae = open_base("tiny-flux", "cpu", "float32").pipe.vae
    names = held_out_contents()[::12]
    truth = true_images(names, STYLE)
    with torch.no_grad():
        again = (vae.decode(vae.encode(truth * 2 - 1).latents).sample / 2 + 0.5).clamp(0, 1)
    for name, image in zip(names, again, strict=True):
        assert float(nearest_truth_margin(image[None], name, STYLE)) > 0


def test_a_wrong_fusion_of_any_kind_and_share_is_wrong():
    truth, plain = true_images([CONTENT], STYLE), true_images([CONTENT])
    other_style, other_content = true_images([CONTENT], "forest"), true_images([held_out_contents()[20]], STYLE)
    wrong = {"plain": plain, "other style": other_style, "other content": other_content}
    for share in (0.35, 0.65):
        wrong |= {f"{share} of {name}": share * truth + (1 - share) * wrong[name] for name in [*wrong][:3]}
    generator = torch.Generator().manual_seed(0)
    wrong["unnamed style"] = random_style(generator, "cpu")(plain).clamp(0, 1)
    wrong["blurred"] = F.interpolate(F.interpolate(truth, size=5, mode="area"), size=128, mode="bilinear")
    wrong["moved"] = truth.roll(24, -1)
    wrong["noise"] = torch.rand(1, 3, 128, 128, generator=generator)
    margins = nearest_truth_margin(torch.cat([*wrong.values()]), CONTENT, STYLE)
    assert {name: float(x) for name, x in zip(wrong, margins, strict=True) if x > 0} == {}


def test_the_margin_of_the_truth_is_half_the_way_to_the_nearest_wrong_image():
    """No wrong image is nearer than the mean with its own nearest neighbour, which is searched for here anew."""
    truth = true_images([CONTENT], STYLE)
    neighbours = torch.cat(
        [true_images([x for x in contents() if x != CONTENT], STYLE)]
        + [true_images([CONTENT], style) for style in ALL_STYLES if style != STYLE]
    )
    colours = (F.avg_pool2d(neighbours, 4) - F.avg_pool2d(truth, 4)).square().flatten(1).mean(1).sqrt()
    assert float(nearest_truth_margin(truth, CONTENT, STYLE)) == pytest.approx(float(colours.min()) / 2, rel=1e-5)


def test_of_a_hand_what_another_hand_drew_under_the_name_is_wrong_and_its_own_drawing_right():
    hands = [hand for hand in HANDS if hand != PLAIN_HAND]
    name = next(name for name in held_out_contents() if all(name in contents_drawn_by(hand) for hand in hands))
    other = next(x for x in contents_drawn_by("noto-v1") if x != name)
    drawn = {hand: true_images([name], hand) for hand in hands} | {"plain": true_images([name])}
    drawn |= {"other content": true_images([other], "noto-v1"), "neon": true_images([name], "neon")}
    margins = nearest_truth_margin(torch.cat([*drawn.values()]), name, "noto-v1")
    assert [label for label, x in zip(drawn, margins, strict=True) if x > 0] == ["noto-v1"]
