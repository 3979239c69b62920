"""What is drawn holds every picture that was given, at its place, and is written whole or not at all."""

import html
import re
import resource

import numpy as np
import pytest
from PIL import Image

from qrlora import plots
from qrlora.plots import Panel, missing_glyphs


def picture(colour, size=8):
    return Image.new("RGB", (size, size), colour)


def notes(figure):
    """The lines beneath a sheet's images."""
    return [text for axes in figure.axes for text in axes.texts]


def texts(figure):
    own = [t.get_text() for t in (*figure.texts, *notes(figure))] + [figure.get_suptitle()]
    return own + [t for axes in figure.axes for t in (axes.get_xlabel(), axes.get_ylabel(), axes.get_title())]


def test_a_sheet_shows_every_picture_with_its_title_and_note():
    panels = [
        Panel("content", [picture("red")], ["learnt"]),
        Panel("merged", [picture("blue"), picture("green")], ["right", "wrong"], [True, False]),
    ]
    figure = plots.sheet(panels, columns=3, title="A sheet", footer="seed 0")
    assert len(figure.axes) == 3
    assert {"A sheet", "seed 0", "content", "merged", "learnt", "right", "wrong"} <= set(texts(figure))
    colours = {line.get_text(): line.get_color() for line in notes(figure)}
    assert colours == {"learnt": plots.MUTED, "right": plots.GOOD, "wrong": plots.BAD}


def test_every_line_of_a_note_has_the_colour_of_its_own_correctness_and_room():
    """A style that is wrong says nothing against the content above it."""
    panels = [Panel("merged", [picture("red")] * 2, ["owl\nneon", "owl\nnone"], [[True, False], [None, True]])]
    figure = plots.sheet([*panels, Panel("below", [picture("blue")])], columns=2)
    colours = [line.get_color() for line in notes(figure)]
    assert colours == [plots.GOOD, plots.BAD, plots.MUTED, plots.GOOD]
    lower, image = figure.texts[-1].get_window_extent(), figure.axes[0].get_window_extent()
    first, second = (line.get_window_extent() for line in notes(figure)[:2])
    assert image.y0 > first.y1 > first.y0 >= second.y1 > second.y0 > lower.y1


def test_a_text_can_stand_in_the_place_of_an_image():
    panels = [Panel("a", [picture("red")]), Panel("what is beneath an image, and how to read it", [])]
    figure = plots.sheet(panels, columns=2)
    cell, text = figure.axes[0].get_window_extent(), figure.texts[1].get_window_extent()
    assert cell.x1 < text.x0 and text.x1 < figure.bbox.x1 and cell.y0 < text.y0 < text.y1 < cell.y1


def test_a_panel_is_never_broken_over_two_lines():
    panels = [Panel("a", [picture("red")] * 2), Panel("b", [picture("blue")] * 2), Panel("c", [picture("green")])]
    figure = plots.sheet(panels, columns=3)
    heights = [round(axes.get_position().y0, 6) for axes in figure.axes]
    assert heights[0] == heights[1] > heights[2] == heights[3] == heights[4]


def test_a_long_title_is_broken_and_has_room():
    long = "a <c> riding a bicycle in <s> style, by a method with a name"
    figure, plain = (plots.sheet([Panel(title, [picture("red")])], columns=1) for title in (long, "short"))
    assert figure.texts[0].get_text().replace("\n", " ") == long and "\n" in figure.texts[0].get_text()
    assert figure.get_figheight() > plain.get_figheight()
    edges = figure.texts[0].get_window_extent()
    assert (
        edges.y1 <= figure.bbox.y1 and edges.y0 >= figure.axes[0].get_window_extent().y1 and edges.x1 < figure.bbox.x1
    )


def test_a_sheet_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="at least one panel, got none"):
        plots.sheet([])
    with pytest.raises(ValueError, match="panel 'a' holds 5 pictures, a line of the sheet takes 1..4"):
        plots.sheet([Panel("a", [picture("red")] * 5)])
    with pytest.raises(ValueError, match="panel 'a' has 2 pictures but 1 notes"):
        plots.sheet([Panel("a", [picture("red")] * 2, ["one"])])


def test_content_strength_runs_down_and_style_strength_across(tmp_path):
    """Figure 7 of the paper: the picture at (k, m) is the one drawn at content k and style m."""
    shades = [[picture((60 * k, 0, 100 * m)) for m in range(3)] for k in range(2)]
    figure = plots.strength_grid(shades, [0, 1], [0, 0.5, 1], title="a <c> in <s> style")
    words = set(texts(figure))
    assert {r"style strength  $\lambda_s$", r"content strength  $\lambda_c$", "0", "0.5", "1"} <= words
    pixels = np.asarray(Image.open(plots.save(figure, tmp_path / "grid.png")).convert("RGB"))
    height, width = pixels.shape[:2]
    for axes, shade in zip(figure.axes, [s for line in shades for s in line], strict=True):
        box = axes.get_position()
        x, y = (box.x0 + box.x1) / 2 * width, (1 - (box.y0 + box.y1) / 2) * height
        assert tuple(pixels[int(y), int(x)]) == shade.getpixel((0, 0))
    first, second, below = (axes.get_position() for axes in (*figure.axes[:2], figure.axes[3]))
    assert first.x0 < second.x0 and first.y0 == second.y0 and below.y0 < first.y0 and below.x0 == first.x0


def test_a_grid_with_a_hole_is_refused():
    with pytest.raises(ValueError, match=r"2 content and 3 style strengths need 2 lines of 3, got \[3, 2\]"):
        plots.strength_grid([[picture("red")] * 3, [picture("red")] * 2], [0, 1], [0, 0.5, 1])


def test_layer_lines_draw_each_value_and_name_the_blocks():
    layers = [f"down_blocks.{b}.attentions.0.transformer_blocks.0.attn1.{x}" for b in (1, 2) for x in ("to_q", "to_k")]
    layers.append("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    figure = plots.layer_lines(layers, {"energy": {"dog": [1, 2, 3, 4, 5]}, "cosine": {"both": [0, 0.5, -1, 1, 0.2]}})
    drawn = [line.get_ydata().tolist() for axes in figure.axes for line in axes.lines if line.get_marker() == "."]
    assert drawn == [[1, 2, 3, 4, 5], [0, 0.5, -1, 1, 0.2]]
    assert [t.get_text() for t in figure.axes[-1].get_xticklabels()] == ["down 1.0", "down 2.0", "mid"]


def test_beside_layer_lines_stands_how_many_layers_have_each_value():
    layers = [f"blocks.{k}.to_q" for k in range(5)]
    figure = plots.layer_lines(layers, {"a pair": {"Q": [0.9, 0.9, 1, 1, 1], "dR": [0] * 5}}, spread="cosine")
    _, beside = figure.axes
    heights = [round(bar.get_height()) for bar in beside.patches if bar.get_height()]
    assert beside.get_xlabel() == "cosine" and heights == [2, 3, 5]


def test_a_picture_is_written_whole_or_not_at_all(tmp_path):
    """A file may grow to 1000 bytes only: the system refuses the rest, as a full disk does."""
    figure = plots.sheet([Panel("a", [picture("red")])])
    written = plots.save(figure, tmp_path / "new" / "a.png")
    before = written.read_bytes()
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, allowed[1]))
    try:
        with pytest.raises(OSError, match="a.png"):
            plots.save(figure, written)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert [p.name for p in written.parent.iterdir()] == ["a.png"] and written.read_bytes() == before


def test_a_plot_needs_a_picture_name():
    with pytest.raises(ValueError, match=r"grid.txt: a plot's name ends in .*png.*; try grid.png"):
        plots.save(plots.sheet([Panel("a", [picture("red")])]), "grid.txt")


PRICES = ("a $5 dog for $10", "$x^2$", "$\\frac{1", "\\$ and $", "_dog $", "größe")


@pytest.mark.parametrize("text", PRICES)
def test_what_people_write_is_drawn_letter_by_letter(text, tmp_path):
    """In every place of every plot: dollars are no formula, a name in a legend may begin with an underscore."""
    import matplotlib

    one, lines = picture("red"), {text: [1.0, 2.0]}
    figures = (
        plots.sheet([Panel(text, [one], [text])], 1, title=text, footer=text),
        plots.strength_grid([[one]], [1], [1], title=text, footer=text),
        plots.layer_lines([f"{text}.a", f"{text}.b"], {text: {**lines, "other": [2.0, 1.0]}}, title=text),
        plots.layer_lines(["a.b", "c.d"], {"x": lines}, spread=text),
        plots.curves({text: {text: ([1, 2], [3.0, 4.0])}}, text, text, title=text),
    )
    for figure, least in zip(figures, (4, 2, 4, 1, 5), strict=True):
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
            svg = plots.save(figure, tmp_path / "plot.svg").read_text(encoding="utf-8")
        shown = [html.unescape(x) for x in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
        assert sum(text in line for line in shown) >= least, shown


def drawn(figure, path):
    """The texts of a figure in the file that is written of it."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        svg = plots.save(figure, path).read_text(encoding="utf-8")
    return [html.unescape(x) for x in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_letters_that_no_font_has_are_numbers_and_not_boxes(tmp_path, monkeypatch):
    """Whatever is installed here; a warning of a letter that is missing would be an error."""
    monkeypatch.setattr(missing_glyphs, "_installed_fonts", lambda: iter(()))
    told = {"猫の in <s>": "[732B 306E] in <s>", "été 🦊!": "été [1F98A]!", "แมว": "[0E41 0E21 0E27]"}
    for text, shown in told.items():
        figure = plots.sheet([Panel(text, [picture("red")], [text])], title=text)
        assert drawn(figure, tmp_path / "plot.svg").count(shown) == 3
        plots.save(plots.sheet([Panel(text, [picture("red")], [text])], title=text), tmp_path / "plot.png")


def test_letters_are_drawn_in_an_installed_font_that_has_them(tmp_path, monkeypatch):
    """Here in one that matplotlib brings."""
    from matplotlib import font_manager

    other = next(x for x in font_manager.fontManager.ttflist if x.name == "STIXGeneral" and x.style == "normal")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [other])
    letter = "\u2322"
    figure = plots.sheet([Panel(f"a {letter}", [picture("red")])])
    assert f"a {letter}" in drawn(figure, tmp_path / "plot.svg")
    assert figure.texts[0].get_fontfamily()[-1] == "STIXGeneral"
