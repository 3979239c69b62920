"""Content, style and frame: each is told by the exact truth, and three adapters are added."""

import numpy as np
import pytest
import torch

import pico
from qrlora.comparison import crossed_adapters, three_attributes
from qrlora.comparison.crossed_settings import CrossedSettings
from qrlora.comparison.row_file import read_rows
from qrlora.comparison.three_attributes import (
    FRAME_ALONE,
    LABELS,
    PARTS,
    SCORES,
    SUM_OF_THREE,
    ThreeAttributes,
    scored_sums,
)
from qrlora.files import load
from qrlora.merging import merge
from qrlora.sampling import generate
from qrlora.world.captions import caption
from qrlora.world.drawings import held_out_contents
from qrlora.world.frames import FRAMES, UNFRAMED, framed_images
from qrlora.world.ground_truth import true_images
from qrlora.world.image_tensors import tensor_from_pil
from qrlora.world.nearest_attributes import attributes_right

SPEC = "qr:steps=1"
OTHER = held_out_contents()[20]


def three_attributes_of(folder, **told) -> ThreeAttributes:
    given = {"root": folder, "base": str(pico.folder()), "contents": 1, "styles": 1, "known": 1, **told}
    return ThreeAttributes(CrossedSettings(**given), 1)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    found = three_attributes_of(tmp_path_factory.mktemp("three"))
    found.run(SPEC)
    return found


def test_a_frame_covers_the_border_alone_and_the_same_whatever_is_beneath():
    one, other = true_images(["robot"], "dusk"), true_images([OTHER])
    border = torch.ones(128, 128, dtype=torch.bool)
    border[12:-12, 12:-12] = False
    looks = []
    for name, frame in FRAMES.items():
        framed = frame(one)
        assert framed.shape == one.shape and framed.min() >= 0 and framed.max() <= 1
        assert torch.equal(framed[..., ~border], one[..., ~border])
        if name != UNFRAMED:
            assert torch.equal(framed[..., border], frame(other)[..., border])
            looks.append(framed[..., border])
    assert len(looks) == 3 and all(not torch.allclose(a, b, atol=0.1) for a in looks for b in looks if a is not b)


@pytest.mark.parametrize("frame", FRAMES)
def test_the_true_image_is_right_in_all_and_one_that_differs_in_one_is_wrong_in_it_alone(frame):
    """Through noise that a drawing may have, too."""
    content, style = "robot", "dusk"
    noise = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) / 10
    other_frame = next(name for name in FRAMES if name != frame)
    for (*shown, beneath), wrong in (
        ((content, style, frame, False), None),
        ((content, style, frame, True), None),
        ((OTHER, style, frame, False), "content"),
        ((OTHER, style, frame, True), "content"),
        ((content, "neon", frame, False), "style"),
        ((content, style, other_frame, True), "frame"),
    ):
        found = attributes_right(
            (framed_images([shown[0]], *shown[1:], beneath) + noise).clamp(0, 1), content, style, frame
        )
        right = {name: bool(x) for name, x in found.items()}
        assert right == {x: x != wrong for x in ("content", "style", "frame")} | {"all": wrong is None}


def test_three_adapters_are_trained_once_and_added_and_drawn_apart(three):
    rows = read_rows(three.rows.path)
    assert {part: sum(row["part"] == part for row in rows) for part in PARTS} == dict.fromkeys(PARTS, 1)
    assert len(list((three.settings.folder / "adapters").glob("*.safetensors"))) == 3
    row = next(row for row in rows if row["part"] == SUM_OF_THREE)
    (frame,) = (load(x) for x in (three.settings.folder / "adapters").glob("*frame*.safetensors"))
    content = three.adapters.content_adapter(SPEC, row["content"]).adapter
    style = three.adapters.style_adapter(SPEC, row["style"], [row["image"]]).adapter
    merged = merge([content, style, frame], (1, 1, 1))
    drawn = tensor_from_pil(generate(three.adapters.base, caption("<c>", "<s>"), [merged], seed=0))
    assert (tensor_from_pil([three.three_image(SPEC, 0)]) - drawn).abs().max() <= 1 / 255 + 1e-6
    right = attributes_right(drawn, row["content"], row["style"], row["frame"])
    assert [float(row[f"{x} right"]) for x in ("content", "style", "frame")] == [
        float(right[x]) for x in ("content", "style", "frame")
    ]


def test_sums_of_three_are_resumed_and_not_made_again(three, monkeypatch):
    before = three.rows.path.read_text()
    for module, name in ((crossed_adapters, "train"), (three_attributes, "generate")):
        monkeypatch.setattr(module, name, lambda *given, **told: pytest.fail("made again"))
    three_attributes_of(three.settings.root).run(SPEC)
    assert three.rows.path.read_text() == before


def test_the_frame_has_a_slot_of_its_own_in_orthogonal_adaptation(tmp_path):
    """Three adapters of which none acts on the inputs of another."""
    found = three_attributes_of(tmp_path)
    spec = "ortha:steps=1:rank=2"
    style = found.adapters.style_adapter(spec, *found.adapters.styles[0]).adapter
    frame = found.adapters.frame_adapter(spec, *found.frames[0]).adapter
    assert style.layers.keys() == frame.layers.keys()
    assert all((style.layers[x].A @ frame.layers[x].A.T).abs().max() < 1e-5 for x in style.layers)


def test_a_rule_that_is_no_sum_is_refused_for_three(tmp_path):
    with pytest.raises(ValueError, match="ties is no sum of adapters"):
        three_attributes_of(tmp_path).run("ties")


def made_up_rows(values: dict[str, np.ndarray]) -> list[dict[str, str]]:
    """Rows of sums with one score each: {method: (contents, styles, frames)}."""
    return [
        dict(zip((*LABELS, *SCORES), (method, SUM_OF_THREE, *"abc", "x", "0", *[str(x)] * 5), strict=True))
        | {"content": f"c{i}", "style": f"s{j}", "frame": f"f{k}"}
        for method, table in values.items()
        for (i, j, k), x in np.ndenumerate(table)
    ]


def test_scores_are_means_with_intervals_over_contents_styles_and_frames_and_differences_are_paired():
    first = np.random.default_rng(0).random((4, 3, 3))
    constant = np.broadcast_to(np.array([0.0, 1.0, 1.0]), (4, 3, 3))  # varies with the frame alone
    lines = {(x.method, x.less): x.scores["all"] for x in scored_sums(made_up_rows({"a": first, "b": first - 0.25}))}
    assert lines["a", ""].value == pytest.approx(first.mean()) and lines["a", ""].count == 36
    assert lines["b", "a"][:3] == pytest.approx((-0.25, -0.25, -0.25))
    (line,) = scored_sums(made_up_rows({"a": constant}))
    assert line.scores["ssim"].value == pytest.approx(2 / 3) and line.scores["ssim"].low == 0


def test_known_words_alone_come_in_pairs_which_are_resampled():
    rows = made_up_rows({"a": np.zeros((3, 1, 2))})
    for row in rows:
        row |= {"part": FRAME_ALONE, "image": "", "style": row["content"].replace("c", "s")}
        row |= dict.fromkeys(SCORES, "1" if row["content"] == "c0" else "0")
    (line,) = scored_sums(rows)
    assert line.scores["all"][:3] == pytest.approx((1 / 3, 0, 1)) and line.scores["all"].count == 6
