"""Short videos: the stock pipeline's, from what was trained on an image; and the files that play them."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import pico
from commands import run
from loras import random_adapter
from qrlora.families import open_base
from qrlora.files import save
from qrlora.video_sampling import generate_video

TOLD = {"height": pico.SIZE, "width": pico.SIZE, "num_inference_steps": 3, "guidance_scale": 2.0}


def values(frames):
    return np.stack([np.asarray(frame).astype(int) for frame in frames])


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder("wan"), "cpu")


def stock(pipe, prompt, frames):
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(3)
    return pipe(prompt, num_frames=frames, generator=noise, output_type="pil", **TOLD).frames[0]


@pytest.mark.parametrize("frames", [3, 5])
def test_a_video_is_the_stock_pipelines(base, frames):
    ours = generate_video(base, "a dog", frames=frames, seed=3)
    assert len(ours) == frames and np.array_equal(values(ours), values(stock(base.pipe, "a dog", frames)))


def test_what_an_image_taught_is_drawn_in_each_frame_as_stock_diffusers_draws_the_file(base, tmp_path):
    """Train on one image, draw five frames: with our adapter, and with its file in the stock pipeline."""
    from diffusers import WanPipeline

    from qrlora.training import train
    from test_training import settings

    adapter = train(settings(tmp_path, steps=6), base=base)
    ours = generate_video(base, "a <c>", [(adapter, 1.0)], frames=5, seed=3)
    plain = generate_video(base, "a <c>", frames=5, seed=3)
    pipe = WanPipeline.from_pretrained(pico.folder("wan"))
    pipe.load_lora_weights(tmp_path / "out.safetensors")
    assert np.abs(values(ours) - values(stock(pipe, "a <c>", 5))).max() <= 1
    assert all(np.abs(frame).max() > 1 for frame in values(ours) - values(plain))


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_a_video_file_plays_its_frames_at_its_pace(tmp_path, capsys, suffix):
    save(random_adapter(pico.wan(), "wan", trigger="<c>", base=str(pico.folder("wan"))), tmp_path / "a.safetensors")
    output = tmp_path / f"v.{suffix}"
    words = ["video", "a <c>", tmp_path / "a.safetensors", "--frames", 5, "--fps", 10, "-o", output]
    code, _, err = run(capsys, *words)
    assert code == 0, err
    with Image.open(output) as played:
        frames = [frame.load() and frame.info["duration"] for frame in ImageSequence.Iterator(played)]
        assert len(frames) == 5 and {*frames} == {100} and played.size == (pico.SIZE, pico.SIZE)


@pytest.mark.parametrize(
    ("family", "words", "said"),
    [
        ("flux", (), "(flux) draws images alone; videos are drawn by such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("wan", ("--frames", 6), "frames must be 1 + a multiple of 2"),
        ("wan", ("--frames", 1), "got 1: try 3"),
        ("wan", ("-o", "v.mp4"), "v.mp4: no format of videos that is written; try v.webp"),
        ("wan", ("--fps", 0), "fps must be 1 or more, got 0"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line_with_what_would_do(tmp_path, monkeypatch, capsys, family, words, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "video", "a dog", "--base", pico.folder(family), *words)
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and said in err.splitlines()[-1]
