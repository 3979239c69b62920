"""Numbers beyond what any memory holds are one line before anything large is made, not a killed process."""

import pytest
from PIL import Image

import pico
from commands import run
from loras import random_adapter
from qrlora import devices
from qrlora.comparison.fusion_comparison import plan_comparison
from qrlora.comparison.settings import ComparisonSettings
from qrlora.comparison.workers import worker_pool
from qrlora.config import TrainConfig
from qrlora.estimate import estimate
from qrlora.families import FAMILIES, open_base
from qrlora.families.vae_memory import least_bytes
from qrlora.image_loading import load_image
from qrlora.known_words import word_losses
from qrlora.sampling import generate, grid
from qrlora.training import train
from qrlora.video_sampling import generate_video
from qrlora.world import demo

HUGE = 10**9
TOO_MUCH = "would take .* GB of memory or more, this machine has"


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder("flux"), "cpu")


def settings(folder, **changes):
    image = folder / "x.png"
    Image.effect_noise((20, 20), 60).convert("RGB").save(image)
    common = {"base": str(pico.folder("flux")), "image": image, "output": folder / "a.safetensors", "device": "cpu"}
    return TrainConfig(**{**common, "rank": 2, "steps": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": HUGE}, f"batch_size={HUGE} {TOO_MUCH}.*take fewer copies"),
        ({"resolution": 16 * 10**6}, f"resolution=16000000 {TOO_MUCH}.*take a smaller one"),
        ({"resolution": "16x160000000"}, f"resolution=16x160000000 {TOO_MUCH}"),
        ({"resolution": 40_000}, f"resolution=40000 with .* {TOO_MUCH}"),
        ({"rank": HUGE}, f"rank {HUGE} is above the smaller side"),
        ({"slot": HUGE, "method": "ortha"}, f"inputs hold 8 slots of rank 2, got slot {HUGE}"),
    ],
)
def test_a_training_that_no_memory_holds_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(settings(tmp_path, **changes))
    assert not (tmp_path / "a.safetensors").exists()


def test_a_training_of_more_adapters_than_the_disk_holds_is_refused(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        train(settings(tmp_path, steps=HUGE, adapter_every=1))


def test_a_batch_whose_activations_alone_fill_the_memory_is_refused_before_the_first_update(tmp_path, monkeypatch):
    """Its latents would fit; a machine with a hundred megabytes, since a test may not fill this one."""
    monkeypatch.setattr(devices, "total_memory", lambda device: 10**8)
    steps = []
    with pytest.raises(ValueError, match=f"batch_size=10000 {TOO_MUCH}.*or gradient_checkpointing=true"):
        train(settings(tmp_path, batch_size=10_000), on_step=steps.append)
    train(settings(tmp_path, batch_size=20), on_step=steps.append)
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"count": HUGE}, f"{HUGE} images {TOO_MUCH}.*take fewer at a time"),
        ({"size": 16 * 10**6}, f"size=16000000 with .* {TOO_MUCH}"),
        ({"steps": HUGE}, f"steps must be 1000 or less, as many as .* was trained with, got {HUGE}"),
        ({"steps": 1001}, "steps must be 1000 or less"),
    ],
)
def test_images_that_no_memory_holds_are_refused(base, how, message):
    with pytest.raises(ValueError, match=message):
        generate(base, "a dog", **{"steps": 1, **how})
    if "count" not in how:
        adapter = random_adapter(base.pipe, "flux")
        with pytest.raises(ValueError, match=message):
            grid(base, "a dog", adapter, adapter, [1.0], [1.0], check_triggers=False, **{"steps": 1, **how})


def test_more_images_than_fit_the_memory_at_the_bases_own_size_are_refused(base, monkeypatch):
    """By their own size, once the base is known: 16 x 16 pixels of 3 bytes each."""
    monkeypatch.setattr(devices, "total_memory", lambda device: 99 * 768)
    monkeypatch.setattr("qrlora.sampling_arguments.SMALL_IMAGE", (1, 1))
    monkeypatch.setattr("qrlora.sampling_arguments.check_size_fits_memory", lambda *_: None)
    with pytest.raises(ValueError, match="100 images would take"):
        generate(base, "a dog", steps=1, count=100)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"frames": 2 * HUGE + 1}, f"frames=2000000001 of 16 x 16 pixels {TOO_MUCH}"),
        ({"frames": 3.0}, "frames must be a whole number, got 3.0"),
        ({"steps": HUGE}, "steps must be 1000 or less"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"steps": "3"}, "steps must be a whole number, got '3'"),
        ({"size": 16 * 10**6}, TOO_MUCH),
        ({"size": "big"}, "size must be a side in pixels"),
        ({"seed": 2**70}, "seed must be at most 9223372036854775807"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"guidance": float("nan")}, "guidance 0 or more"),
        ({"guidance": "3"}, "guidance 0 or more, got 1 and '3'"),
        ({"adapters": "dog.safetensors"}, r"adapters is a list .*\[\('dog.safetensors', 0.8\)\]; got str"),
        ({"adapters": [None]}, "an adapter or its file is needed, got None"),
        ({"prompt": None}, "prompt must be text"),
        ({"prompt": ["a", "b"]}, "give one prompt"),
        ({"base": 3}, "base must be an open base or a name, got int"),
        ({"device": "cpu"}, "device say how a base is opened, and this one is open"),
        ({"offloading": True}, "no setting offloading"),
    ],
)
def test_a_video_refuses_what_images_refuse(how, message):
    with pytest.raises(ValueError, match=message):
        generate_video(**{"base": open_wan(), "prompt": "a dog", "frames": 3, "steps": 1, **how})


def open_wan():
    return open_base(pico.folder("wan"), "cpu")


def test_the_jobs_of_a_comparison_and_a_demonstration_hold_no_more_images_than_fit(tmp_path):
    with pytest.raises(ValueError, match=f"{HUGE} images {TOO_MUCH}"):
        plan_comparison(ComparisonSettings(base=str(pico.folder("flux")), pairs=1, seeds=HUGE, device="cpu"))
    with pytest.raises(ValueError, match=f"{HUGE} workers {TOO_MUCH}"), worker_pool(HUGE):
        pass
    with pytest.raises(ValueError, match=f"{HUGE} images {TOO_MUCH}"):
        demo.demo(tmp_path, base=str(pico.folder("flux")), count=HUGE, device="cpu")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_words_are_not_tried_on_more_copies_than_fit(base, tmp_path):
    Image.new("RGB", (pico.SIZE, pico.SIZE), "red").save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=f"copies={HUGE} {TOO_MUCH}"):
        word_losses(base, load_image(tmp_path / "x.png", pico.SIZE), "a {}", ["dog"], copies=HUGE)


def test_a_block_that_no_memory_holds_is_not_timed():
    with pytest.raises(ValueError, match=f"the inputs of a FluxTransformerBlock.* {TOO_MUCH}"):
        estimate(str(pico.folder("flux")), how="blocks", batch_size=HUGE, device="cpu", against="")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_least_that_a_vae_takes_is_no_more_than_it_takes(family):
    """Compared with the largest result of any operation while an image is encoded and decoded."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    base, sizes = open_base(pico.folder(family), "cpu"), []

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend(x.nbytes for x in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(x))
            return result

    side = 4 * base.defaults.resolution
    with Largest():
        base.decode_image(base.encode_image(torch.zeros(1, 3, side, side)))
    assert 0.2 * max(sizes) <= least_bytes(base.pipe.vae, side, side) <= max(sizes)


def test_a_command_says_so_in_one_line(tmp_path, capsys):
    words = ("generate", "a dog", "--base", pico.folder("flux"), "--count", HUGE, "-o", tmp_path / "x.png")
    code, _, err = run(capsys, *words)
    assert code == 2 and err.count("error: ") == 1 and "1000000000 images would take" in " ".join(err.split())
