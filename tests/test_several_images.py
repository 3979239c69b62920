"""One image or several: what is trained on, in which order, under which captions, and what a file says of it."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import pico
from commands import run
from qrlora.config import TrainConfig, read_recipe
from qrlora.families import open_base
from qrlora.files import load, read_header
from qrlora.image_loading import load_image
from qrlora.noising import noising_of
from qrlora.training import train
from qrlora.training.batch_images import image_indices
from qrlora.training.training_images import find_training_images
from qrlora.training_example import encode_training_examples
from test_training import opened

CAPTIONS = {"a": "a <c> dog", "b": "a <c> in neon style"}
"""Text files of the folder's images; the third image has none."""


@pytest.fixture
def folder(tmp_path):
    """Three images of different colours and shapes, with two captions, one over two lines after a byte order mark."""
    path = tmp_path / "images"
    path.mkdir()
    for k, name in enumerate(("a.png", "b.jpg", "c.PNG")):
        noise = torch.randint(0, 256, (20 + k, 20 + 4 * k, 3), generator=torch.Generator().manual_seed(k))
        Image.fromarray(noise.numpy().astype(np.uint8)).save(path / name, quality=95)
    (path / "a.txt").write_text("\ufeffa <c>\n  dog\n")
    (path / "b.txt").write_text(CAPTIONS["b"])
    (path / ".c.png").write_bytes(b"a hidden file that some systems leave")
    (path / "notes.md").write_text("not an image")
    return path


def settings(folder, **changes):
    output = folder.parent / "out.safetensors"
    own = {"base": str(pico.folder()), "image": folder, "output": output, "device": "cpu", "overwrite": True}
    return TrainConfig(**{**own, "steps": 4, **changes})


def trained(config, base="sdxl", **how):
    train(config, base=opened(base), **how)
    with open(config.output, "rb") as file:
        return file.read()


def test_a_single_image_gives_the_same_file_however_it_is_given(folder, tmp_path):
    """A file with its prompt; a list of one; a folder of one with its caption in a text file. All bytes are equal."""
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "a.png", alone)
    shutil.copy(folder / "a.txt", alone)
    first = trained(settings(folder, image=folder / "a.png", prompt=CAPTIONS["a"]))
    assert trained(settings(folder, image=[folder / "a.png"])) == first
    assert trained(settings(folder, image=alone)) == first
    assert trained(settings(folder, image=alone, prompt="a <c> car")) == first  # the text file counts


def test_every_image_is_trained_on_once_in_each_epoch_in_an_order_of_the_runs_seed():
    rows = [index for step in range(1, 11) for index in image_indices(step, 3, 5, seed=7)]
    epochs = [rows[k : k + 5] for k in range(0, 30, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs) and len({*map(tuple, epochs)}) > 3
    assert image_indices(9, 3, 5, seed=7) == rows[24:27]  # whatever was asked for before
    assert [image_indices(step, 3, 5, seed=8) for step in range(1, 11)] != [rows[k : k + 3] for k in range(0, 30, 3)]
    assert image_indices(4, 3, 1, seed=7) == [0, 0, 0]


@pytest.mark.parametrize("family", pico.BASES)
def test_an_update_is_computed_on_the_images_of_its_step_each_with_its_own_caption(folder, family):
    """With a step size of nothing the model stays the base, and each loss is that of a loop written out here."""
    losses = []
    config = settings(folder, learning_rate=1e-30, batch_size=2, targets="attention" if family != "flux" else None)
    train(config, base=opened(family), on_step=lambda progress: losses.append(progress.loss))
    base = open_base(pico.folder(family), "cpu")
    images = [load_image(folder / name, pico.side_of(family)) for name in ("a.png", "b.jpg", "c.PNG")]
    captions = [*CAPTIONS.values(), "a <c>"]
    singles = [encode_training_examples(base, [x], [text]) for x, text in zip(images, captions, strict=True)]
    generator = torch.Generator().manual_seed(0)
    sampling = base.defaults.timestep_sampling
    noising, expected = noising_of(base.pipe.scheduler.config, timestep_sampling=sampling), []
    for step in range(1, 5):
        noise = torch.randn(2, *singles[0].latents.shape[1:], generator=generator)
        time = noising.sample_time(2, generator)
        errors = []
        for row, index in enumerate(image_indices(step, 2, 3, seed=0)):
            clean, n, t = singles[index].latents, noise[row : row + 1], time[row : row + 1]
            with torch.no_grad():
                seen = base.family.predict(base.model, noising.add_noise(clean, n, t), t, singles[index].condition)
            errors.append((seen - noising.target(clean, n, t)).square().mean())
        expected.append(float(torch.stack(errors).mean()))
    assert losses == pytest.approx(expected, rel=1e-4)


def train_until(config, step: int) -> None:
    """A training that is killed after an update."""

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.step == step:
            raise Killed

    with pytest.raises(Killed):
        trained(config, on_step=kill)


@pytest.mark.parametrize("method", ["qr", "qr-contrast"])
def test_a_run_on_several_images_goes_on_after_a_kill_to_the_same_bytes(folder, method):
    config = settings(folder, method=method, steps=6, save_every=1)
    whole = trained(config)
    (folder.parent / "out.safetensors").unlink()

    train_until(config, step=4)
    seen = []
    assert trained(config, on_step=lambda progress: seen.append(progress.step)) == whole
    assert seen == [5, 6]
    assert trained(dataclasses.replace(config, overwrite=False), on_step=pytest.fail) == whole  # done: known again


CHANGES = {
    "a pixel of one image": lambda folder: Image.new("RGB", (20, 20)).save(folder / "a.png"),
    "one caption": lambda folder: (folder / "b.txt").write_text("a <c> in sketch style"),
    "one caption fewer": lambda folder: (folder / "b.txt").unlink(),
    "one image fewer": lambda folder: (folder / "c.PNG").unlink(),
    "one image more": lambda folder: Image.new("RGB", (20, 20), "red").save(folder / "d.png"),
    "two captions exchanged": lambda folder: [
        (folder / f"{x}.txt").write_text(CAPTIONS[y]) for x, y in (("a", "b"), ("b", "a"))
    ],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_checkpoint_is_refused_for_other_images_or_captions(folder, change):
    config = settings(folder, save_every=1)

    train_until(config, step=2)
    change(folder)
    with pytest.raises(ValueError, match="holds the checkpoint of another run"):
        trained(config)


def test_a_header_names_the_images_and_no_more_than_a_few(folder):
    trained(settings(folder))
    header = read_header(folder.parent / "out.safetensors")
    assert header.config["image"] == "a.png, b.jpg, c.PNG" and header.config["images"] == 3
    assert header.prompt == "a <c>"
    for k in range(40):
        shutil.copy(folder / "a.png", folder / f"x{k:02}.png")
    trained(settings(folder, steps=1))
    header = read_header(folder.parent / "out.safetensors")
    assert header.config["image"].endswith("x04.png and 35 more") and header.config["images"] == 43
    assert len(json.dumps(header.config)) < 2000 and str(folder) not in json.dumps(header.config)


def test_a_style_needs_no_prompt_where_every_image_has_a_caption(folder, capsys):
    """The command that draws with it, and the header, name the first caption."""
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f"a {name} in <s> style")
    out = folder.parent / "out.safetensors"
    words = ["train", f"image={folder}", "role=style", f"base={pico.folder()}", "steps=1", f"output={out}"]
    code, shown, _ = run(capsys, *words)
    assert code == 0 and "'a a in <s> style'" in shown and load(out).header.prompt == "a a in <s> style"
    (folder / "b.txt").unlink()
    code, _, err = run(capsys, *words, "--overwrite")
    assert code == 2 and f"{folder / 'b.jpg'} has no caption: write it into b.txt beside it, or give prompt=" in err


def test_all_ways_to_give_several_images_mean_the_same(folder, tmp_path, monkeypatch):
    paths = [str(folder / name) for name in ("a.png", "b.jpg")]
    (tmp_path / "r.toml").write_text(f"image = {json.dumps(paths)}")
    (tmp_path / "one.toml").write_text('image = "other.png"')
    ways = [
        TrainConfig(image=paths),
        TrainConfig(image=tuple(map(folder.joinpath, ("a.png", "b.jpg")))),
        read_recipe(tmp_path / "r.toml"),
        read_recipe(tmp_path / "one.toml", [f"image={path}" for path in paths]),
        read_recipe(None, [f"image={','.join(paths)}"]),
        read_recipe(None, [f"image={json.dumps(paths)}"]),
    ]
    assert {way.image for way in ways} == {tuple(paths)}
    assert [image.caption for image in find_training_images(ways[0])] == [*CAPTIONS.values()]
    both = folder / "a.png,b.png"
    shutil.copy(folder / "a.png", both)
    assert read_recipe(None, [f"image={both}"]).image == str(both)  # a name with a comma is a file that exists
    monkeypatch.chdir(folder)
    many = ["a.png", "b.jpg"] * 30  # longer than the name of a file can be
    assert read_recipe(None, [f"image={','.join(many)}"]).image == tuple(many)
    crops = [
        TrainConfig(image=paths, crop=[(0, 1, 16), "2,3,17"]),
        read_recipe(None, [f"image={paths[0]}", "crop=0,1,16", "crop=2,3,17"]),
        read_recipe(None, ["crop=[[0, 1, 16], [2, 3, 17]]"]),
    ]
    assert {way.crop for way in crops} == {((0, 1, 16), (2, 3, 17))}
    alone = [TrainConfig(crop=(0, 1, 16)), TrainConfig(crop="0,1,16"), read_recipe(None, ["crop=[0, 1, 16]"])]
    assert {way.crop for way in alone} == {((0, 1, 16),)}


def test_a_crop_is_what_an_editor_would_have_cut_out(folder):
    path = folder / "b.jpg"
    cut = Image.open(path).convert("RGB").crop((5, 2, 22, 19))
    cut.save(folder / "cut.png")
    cropped, whole = load_image(path, 16, (5, 2, 17)), load_image(folder / "cut.png", 16)
    assert cropped.image.tobytes() == whole.image.tobytes()
    # SDXL's size conditions: the file's size, and the corner in the image resized by 16 / 17
    assert cropped.original == (21, 24) and cropped.corner == (2, 5) and cropped.used == (5, 2, 17, 17)
    assert whole.original == (17, 17) and whole.corner == (0, 0)


def test_a_crop_of_the_middle_square_is_the_default(tmp_path):
    """But for the outermost pixels, into which the default resizes a little of what is beyond."""
    Image.effect_noise((48, 32), 60).convert("RGB").save(tmp_path / "x.png")
    middle, chosen = load_image(tmp_path / "x.png", 16), load_image(tmp_path / "x.png", 16, (8, 0, 32))
    assert np.array_equal(np.asarray(middle.image)[:, 3:-3], np.asarray(chosen.image)[:, 3:-3])
    assert (middle.original, middle.corner, middle.used) == (chosen.original, chosen.corner, chosen.used)
    assert middle.cut_off == pytest.approx(1 / 3)


def test_what_is_cut_off_is_said_in_one_line_and_a_chosen_crop_is_not(folder, caplog):
    caplog.set_level(logging.INFO, logger="qrlora")
    trained(settings(folder, image=folder / "a.png", steps=1))  # square
    trained(settings(folder, image=folder / "b.jpg", crop="0,0,20", steps=1))
    assert not caplog.messages
    trained(settings(folder, image=folder / "b.jpg", steps=1))
    trained(settings(folder, steps=1))
    assert caplog.messages == [
        "b.jpg (24 x 21) is cut to its middle, crop=1,0,21, 11% cut off; crop=X,Y,SIDE moves it",
        "2 of 3 images are cut to their middle: c.PNG (28 x 22) is cut to its middle, crop=3,0,22, 20% cut off;"
        " one crop for each moves them",
    ]


def test_another_crop_is_another_run(folder):
    config = settings(folder, image=folder / "b.jpg", crop="0,0,20", overwrite=False)
    first = trained(config)
    assert read_header(config.output).config["crop"] == [[0, 0, 20]]
    assert trained(config, on_step=pytest.fail) == first
    with pytest.raises(FileExistsError):
        trained(dataclasses.replace(config, crop="1,0,20"))


BAD = {  # settings, what happens to the folder before, what the one line must say
    "an empty folder": (["image=DIR/none"], lambda f: (f / "none").mkdir(), "DIR/none holds no images (.png, .jpg"),
    "a folder of folders": (["image=DIR/.."], None, "images (.png, .jpg, "),
    "an image that cannot be read": (["image=DIR"], lambda f: (f / "b.jpg").write_bytes(b"x" * 99), "DIR/b.jpg is not"),
    "an image cut short": (
        ["image=DIR"],
        lambda f: (f / "b.jpg").write_bytes((f / "b.jpg").read_bytes()[:400]),
        "DIR/b.jpg is damaged or cut short",
    ),
    "a caption without trigger": (
        ["image=DIR"],
        lambda f: (f / "b.txt").write_text("a dog"),
        "DIR/b.txt: the caption 'a dog' lacks the trigger word '<c>': try 'a <c>'",
    ),
    "a prompt without trigger": (["image=DIR", "prompt=a dog"], None, "c.PNG: the caption 'a dog' lacks the trigger"),
    "an empty caption": (["image=DIR"], lambda f: (f / "b.txt").write_text(" \n"), "DIR/b.txt is empty: write the"),
    "a caption of another encoding": (
        ["image=DIR"],
        lambda f: (f / "b.txt").write_bytes("a <c> Käse".encode("latin-1")),
        "DIR/b.txt is not text in UTF-8",
    ),
    "one file missing": (["image=DIR/a.png,DIR/z.png"], None, "DIR/z.png: No such file"),
    "a crop beyond the image": (
        ["image=DIR/b.jpg", "crop=10,0,20"],
        None,
        "DIR/b.jpg: crop=10,0,20 reaches beyond the image: the image has 24 x 21 pixels, x + side is at most 24",
    ),
    "a crop of nothing": (["image=DIR/b.jpg", "crop=0,0,8"], None, "is under 16 pixels: use 16 or more"),
    "a crop of words": (["image=DIR/b.jpg", "crop=middle"], None, "crop reads x,y,side in whole pixels"),
    "a crop outside": (["image=DIR/b.jpg", "crop=-1,0,20"], None, "crop reads x,y,side in whole pixels"),
    "too few crops": (["image=DIR", "crop=0,0,20"], None, "1 crops for 3 images: give one crop for each image"),
    "too many crops": (["image=DIR/a.png", "crop=0,0,20", "crop=0,0,20"], None, "2 crops for 1 image: give"),
    "images as words": (["image=DIR/a.png", "DIR/b.jpg"], None, "several images are given one by one"),
}


@pytest.mark.parametrize(("words", "spoil", "message"), BAD.values(), ids=BAD.keys())
def test_a_mistake_about_several_images_is_one_line_before_a_base_is_opened(folder, capsys, words, spoil, message):
    if spoil:
        spoil(folder)
    words = [word.replace("DIR", str(folder)) for word in words]
    code, out, err = run(capsys, "train", *words, "base=there/is/none", f"output={folder}/out.safetensors")
    line = err.strip().splitlines()[-1]
    assert code == 2 and out == "" and err.count("error: ") == 1 and "Traceback" not in err
    assert line.startswith("error: ") and message.replace("DIR", str(folder)) in line
