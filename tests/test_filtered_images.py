"""Filtered copies of a content's picture, with captions, to train on beside it."""

import shlex
import weakref

import numpy as np
import pytest
from PIL import Image

from commands import run
from qrlora.evaluation import ssim
from qrlora.families import open_base
from qrlora.filtered_images import COMMON_FILTERS, filtered_caption, write_filtered_images
from qrlora.sampling import generate
from qrlora.training import train
from qrlora.world.captions import caption
from qrlora.world.drawings import load_drawings
from qrlora.world.ground_truth import true_image
from qrlora.world.image_tensors import pil_from_tensor, tensor_from_pil
from qrlora.world.style_filters import known_filters
from qrlora.world.styles import STYLES

ON_SDXL = ("--base", "stabilityai/stable-diffusion-xl-base-1.0")
"""A base that is not built in, which is not asked for."""


@pytest.fixture
def robot(tmp_path):
    path = tmp_path / "robot.png"
    true_image("robot", "plain").save(path)
    return path


def test_a_known_filter_makes_the_true_image_of_its_style():
    """Against the style as a function of the drawing; a file's 8 bits make a pixel differ by 2, and edges by more."""
    plain = true_image("robot", "plain")
    for name, use in known_filters().items():
        expected = pil_from_tensor(STYLES[name](load_drawings(["robot"])).clamp(0, 1))[0]
        difference = np.abs(np.asarray(use(plain), float) - np.asarray(expected, float))
        assert difference.mean() < 1, name


def test_every_common_filter_changes_a_picture_and_keeps_its_size():
    picture = true_image("robot", "plain").resize((300, 200))
    for name, use in COMMON_FILTERS.items():
        copy = use(picture).convert("RGB")
        assert copy.size == picture.size
        assert np.abs(np.asarray(copy, float) - np.asarray(picture, float)).mean() > 2, name


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a <c> in plain style", "a <c> in sepia style"),
        ("A <c> in Plain style", "A <c> in sepia style"),
        ("a plainly dressed <c> in plain style", "a plainly dressed <c> in sepia style"),
        ("a plainly dressed <c>", "a plainly dressed <c>, sepia"),
        ("a photo of a <c>", "a photo of a <c>, sepia"),
    ],
)
def test_a_caption_names_the_filter_in_place_of_plain_or_at_its_end(prompt, expected):
    assert filtered_caption(prompt, "sepia") == expected


def test_a_folder_of_filtered_copies_is_what_training_takes_with_a_caption_for_each(capsys, robot, tmp_path):
    code, out, err = run(capsys, "filters", robot, "--output", tmp_path / "copies", "--names", "sepia,negative")
    assert code == 0, err
    assert [x.read_text().strip() for x in sorted((tmp_path / "copies").glob("*.txt"))] == [
        "a <c> in plain style",
        "a <c> in sepia style",
        "a <c> in negative style",
    ]
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("qrlora train")))[1:]
    code, _, err = run(capsys, *command, f"output={tmp_path / 'robot.safetensors'}", "steps=3", "rank=2")
    assert code == 0, err


def test_a_caption_that_nobody_gave_is_a_photographs_unless_the_base_is_built_in(capsys, robot, tmp_path):
    code, _, err = run(capsys, "filters", robot, *ON_SDXL, "--output", tmp_path / "copies", "--names", "posterized")
    assert code == 0, err
    texts = [x.read_text().strip() for x in sorted((tmp_path / "copies").glob("*.txt"))]
    assert texts == ["a photo of a <c>", "a photo of a <c>, posterized"]


def test_every_filter_can_be_chosen_by_the_name_that_is_listed(capsys, robot, tmp_path):
    names = ",".join(COMMON_FILTERS)
    code, _, err = run(capsys, "filters", robot, *ON_SDXL, "--names", names, "--output", tmp_path / "copies")
    assert code == 0, err
    assert len(list((tmp_path / "copies").glob("*.png"))) == 1 + len(COMMON_FILTERS)


def test_a_caption_that_training_would_refuse_is_named_before_training(capsys, robot, tmp_path):
    words = "filters", robot, "a photo of a sks dog", "--names", "sepia", "--output", tmp_path / "copies"
    code, out, err = run(capsys, *words)
    assert code == 0 and "the caption 'a photo of a sks dog' lacks <c>" in err and "trigger=WORD" in err
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("qrlora train")))[1:]
    command += [f"output={tmp_path / 'robot.safetensors'}", "steps=1", "rank=2"]
    assert run(capsys, *command)[0] == 2
    code, _, err = run(capsys, *command, "trigger=sks")
    assert code == 0, err


def test_copies_of_a_photograph_are_never_in_memory_all_at_once(tmp_path):
    """Of one of 24 megapixels they would be over a gigabyte."""
    Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
    made, living = [], []

    def tracked(image):
        copy = image.copy()
        made.append(weakref.ref(copy))
        living.append(sum(one() is not None for one in made))
        return copy

    write_filtered_images(tmp_path / "red.png", "a <c>", tmp_path / "copies", dict.fromkeys("abcdefghi", tracked))
    assert len(living) == 9 and max(living) <= 2


def test_the_first_of_the_copies_is_the_picture_itself_with_its_transparency(tmp_path):
    picture = Image.new("RGBA", (64, 48), (200, 30, 30, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 32, 48))
    picture.save(tmp_path / "half.png")
    copies = write_filtered_images(tmp_path / "half.png", "a <c>", tmp_path / "copies", COMMON_FILTERS)
    for path in copies:
        found = Image.open(path)
        assert found.mode == "RGBA" and found.getchannel("A").tobytes() == picture.getchannel("A").tobytes()
    assert Image.open(copies[0]).getpixel((40, 10)) == (200, 30, 30, 255)


def test_a_content_that_was_learnt_with_filtered_copies_holds_in_a_style_that_no_copy_had(robot, tmp_path):
    """SSIM with the truth in negative, whose filter is left out of the copies; from the picture alone it is 0.43."""
    filters = {name: use for name, use in known_filters().items() if name != "negative"}
    write_filtered_images(robot, caption("<c>", "plain"), tmp_path / "copies", filters, 128)
    base = open_base("tiny-flux", "cpu", "float32")
    output = tmp_path / "robot.safetensors"
    adapter = train(base=base, image=tmp_path / "copies", output=output, steps=48, progress=False)
    image = generate(base, caption("<c>", "negative"), [(adapter, 1.0)], seed=0)[0]
    assert ssim(tensor_from_pil([image]), tensor_from_pil([true_image("robot", "negative")])).item() > 0.47


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--names", "sepia,polaroid"], "there is no filter 'polaroid'"),
        ([*ON_SDXL, "--names", "negative"], "there is no filter 'negative'"),
    ],
)
def test_a_filter_that_does_not_exist_is_named_with_those_that_do(capsys, robot, tmp_path, words, complaint):
    code, _, err = run(capsys, "filters", robot, "--output", tmp_path / "copies", *words)
    assert code == 2 and complaint in err and not (tmp_path / "copies").exists()


def test_fewer_filters_replace_more_of_an_earlier_call_only_where_that_is_asked_for(capsys, robot, tmp_path):
    words = ("filters", robot, "--output", tmp_path / "copies", "--names")
    assert run(capsys, *words, "sepia,negative,pop")[0] == 0
    code, _, err = run(capsys, *words, "sepia")
    assert code == 2 and len([*(tmp_path / "copies").iterdir()]) == 8, err
    code, _, err = run(capsys, *words, "sepia", "--overwrite")
    assert code == 0, err
    written = ["00.png", "00.txt", "01.png", "01.txt"]
    assert sorted(x.name for x in (tmp_path / "copies").iterdir()) == written
    (tmp_path / "copies" / "57.png").write_text("somebody's photograph")
    code, _, err = run(capsys, *words, "sepia", "--overwrite")
    assert code == 2 and "holds other files, such as 57.png" in err
    assert sorted(x.name for x in (tmp_path / "copies").iterdir()) == [*written, "57.png"]


def test_a_base_that_is_nowhere_is_refused_before_anything_is_written(capsys, robot, tmp_path):
    code, _, err = run(capsys, "filters", robot, "--base", "tiny-flxu", "--output", tmp_path / "copies")
    assert code == 2 and "did you mean 'tiny-flux'" in err and not (tmp_path / "copies").exists()


def test_nothing_is_written_beside_other_files_or_over_copies_that_are_there(capsys, robot, tmp_path):
    folder = tmp_path / "copies"
    folder.mkdir()
    (folder / "cat.png").write_bytes(b"")
    code, _, err = run(capsys, "filters", robot, "--output", folder)
    assert (
        code == 2 and "holds other files, such as cat.png" in err and [x.name for x in folder.iterdir()] == ["cat.png"]
    )
    (folder / "cat.png").unlink()
    for hidden in (".DS_Store", ".00.png.1234abcd.partial"):  # a file manager's, and what a killed process left
        (folder / hidden).touch()
    assert run(capsys, "filters", robot, "--output", folder, "--names", "sepia")[0] == 0
    code, _, err = run(capsys, "filters", robot, "a <c>", "--output", folder, "--names", "sepia")
    assert code != 0 and "--overwrite" in err and (folder / "00.txt").read_text() == "a <c> in plain style\n"
