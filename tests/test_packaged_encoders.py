"""EfficientNet-Lite0 and ST-LPIPS, with the weights of their packages."""

import importlib.metadata

import numpy as np
import pytest
import torch
from PIL import Image

from qrlora import packaged_encoders
from qrlora.evaluation import open_encoder
from qrlora.world.drawings import contents, contents_drawn_by, held_out_contents
from qrlora.world.ground_truth import true_image, true_images
from qrlora.world.nearest_drawings import rank_of_content


def correlated(x, weight, bias=None, pad=0, stride=1):
    """A convolution as networks have it, in NumPy: x (c, h, w), weight (o, c, k, k)."""
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[-2:], axis=(1, 2))[:, ::stride, ::stride]
    out = np.einsum("chwij,ocij->ohw", windows, weight, optimize=True)
    return out if bias is None else out + bias[:, None, None]


def blurred_half(x):
    """1 2 1 in both directions, every second place, borders reflected by two."""
    x = np.pad(x, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    for axis in (1, 2):
        n = x.shape[axis]
        x = sum(w * x.take(range(k, n - 2 + k), axis) for k, w in enumerate((1, 2, 1))) / 4
    return x[:, ::2, ::2]


def maxima(x):
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2)).max((-1, -2))


def published_distance(first, second, state):
    """ST-LPIPS's formula (arXiv 2207.13686 on arXiv 1801.03924), layer by layer in float64."""
    total, stages = 0.0, []
    for image in (first, second):
        x = (image * 2 - 1 - state["scaling_layer.shift"][0]) / state["scaling_layer.scale"][0]
        layers = []
        for name, pad in (("slice1.0", 2), ("slice2.5", 2), ("slice3.9", 1), ("slice4.11", 1), ("slice5.13", 1)):
            if name in ("slice2.5", "slice3.9"):
                x = blurred_half(maxima(x))
            x = correlated(x, state[f"net.{name}.weight"], state[f"net.{name}.bias"], pad)
            x = np.maximum(blurred_half(x) if name == "slice1.0" else x, 0)
            layers.append(x / np.sqrt((x**2).sum(0, keepdims=True)))
        stages.append(layers)
    for k, (x, y) in enumerate(zip(*stages, strict=True)):
        weight = state[f"lin{k}.model.1.weight"][0]
        total += (weight * (x - y) ** 2).sum(0).mean()
    return total


def test_st_lpips_is_the_published_distance_whose_score_is_one_less_it():
    network = packaged_encoders.shift_tolerant_lpips()
    path = next(x for x in importlib.metadata.files("stlpips-pytorch") or () if x.name.startswith("alex_shift"))
    state = torch.load(path.locate(), map_location="cpu", weights_only=True)
    images = torch.rand(2, 3, 40, 36, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = network(images)
    wanted = published_distance(*images.double().numpy(), {k: v.double().numpy() for k, v in state.items()})
    assert float((first - second).square().sum()) == pytest.approx(wanted, rel=1e-4) and wanted > 0.01


def test_st_lpips_forgives_a_shift_that_ssim_does_not():
    """The same picture moved by two pixels of 128 scores nearer than the thing in another style or another thing."""
    encoder = open_encoder("st-lpips", "cpu")
    truth = true_image("robot", "dusk")
    moved = Image.new("RGB", truth.size, "white")
    moved.paste(truth, (2, 0))
    same, shifted, other_style, other_thing = encoder.likeness(
        [truth, moved, true_image("robot", "neon"), true_image("owl", "dusk")], truth
    )
    assert same == pytest.approx(1, abs=1e-5)
    assert 1 > shifted > max(other_style, other_thing)


def test_lite0_s_features_are_what_its_own_last_layer_reads():
    """Against the package's forward pass, on pixels scaled as its authors do."""
    network = packaged_encoders.efficientnet_lite0().eval()
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network.network((images * 255 - 127) / 128)
        torch.testing.assert_close(network.network._fc(network(images)), wanted, rtol=1e-4, atol=1e-4)


def test_lite0_finds_things_again_in_another_hand():
    """Among a dozen held-out contents, where chance finds one; the second opinion's ranks say the same."""
    drawn = set(contents_drawn_by("twemoji")) & set(contents_drawn_by("fluent-flat"))
    names = [name for name in held_out_contents() if name in drawn][::5][:12]
    encoder = open_encoder("efficientnet-lite0", "cpu")
    one, two = (
        encoder.features([Image.fromarray(tile(n, hand)) for n in names]) for hand in ("twemoji", "fluent-flat")
    )
    assert torch.allclose(one.norm(dim=1), torch.ones(len(names)))
    found = torch.cdist(one, two).argmin(1) == torch.arange(len(names))
    assert int(found.sum()) >= 5
    means = torch.zeros(len(contents()), two.shape[1])
    means[[contents().index(name) for name in names]] = two
    ranks = torch.cat([rank_of_content(one[k : k + 1], means, name) for k, name in enumerate(names)])
    assert torch.equal(ranks == 0, found)


def tile(name, hand):
    return (true_images([name], hand)[0].permute(1, 2, 0) * 255).byte().numpy()


def test_what_was_measured_with_is_named_by_its_version():
    told = str(open_encoder("st-lpips", "cpu"))
    assert told == "st-lpips: stlpips-pytorch@0.0.2, RGB, whole image to 256 x 256 bicubic, LPIPS's scaling"


@pytest.mark.parametrize("name", packaged_encoders.PACKAGED_ENCODERS)
def test_a_network_whose_package_is_missing_is_one_line_with_the_command(name, monkeypatch):
    monkeypatch.setattr("qrlora.optional_dependencies.version_of", lambda distribution: "")
    with pytest.raises(ValueError, match=rf'{name} needs .*pytorch.*: pip install "qrlora\[encoders\]"') as caught:
        open_encoder(name, "cpu")
    assert len(str(caught.value).splitlines()) == 1
