"""What three more images of a style are worth: python bench/several_images.py [--base tiny-flux] [--styles 4].

For each held-out style of the synthetic benchmark two adapters with the base's own settings and one seed: one trained
on one true image of the style, one on four, of four contents, for twice the updates. Each draws 12 other contents
that the base knows; the classifiers, who know every style, say in how many the style is right, and in how many content
and style. Prints a row for each style and writes out/bench/several_images.png; adapters that are there already are not
trained again.
"""

from pathlib import Path

from harness import arguments
from qrlora import plots
from qrlora.families import open_base
from qrlora.sampling import generate
from qrlora.training import train
from qrlora.world.captions import STYLE, caption
from qrlora.world.classifiers import classify
from qrlora.world.drawings import known_contents
from qrlora.world.ground_truth import true_image
from qrlora.world.image_tensors import tensor_from_pil
from qrlora.world.styles import HELD_OUT_STYLES

COUNTS = (1, 4)
"""Training images of a style."""
DRAWN = 12
"""Other contents that are drawn in it."""
SHOWN = 3
"""Of them in the figure."""


def write_images(folder: Path, style: str, shown: list[str]) -> Path:
    """A folder of true images of contents in a style, each with its caption in a text file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(shown):
        true_image(content, style).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption(content, STYLE))
    return folder


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", default="tiny-flux")
    parser.add_argument("--styles", type=int, default=4)
    options = parser.parse_args()
    out, styles = options.folder / "several_images", 1 if options.quick else options.styles
    base, known = open_base(options.base, options.device, "float32"), known_contents()
    others = known[5 :: len(known) // DRAWN][:DRAWN]
    right: dict[int, list[tuple[bool, bool]]] = {count: [] for count in COUNTS}
    panels = []
    print("| style | images | style right | content and style right |\n|---|---|---|---|")
    for k, style in enumerate(list(HELD_OUT_STYLES)[:styles]):
        shown = [known[(k * 4 + j + 1) * len(known) // 25 + 1] for j in range(max(COUNTS))]
        assert not set(shown) & set(others)
        panels.append(plots.Panel(f"{style}: the images", [true_image(content, style) for content in shown]))
        for count in COUNTS:
            name = out / f"{style}-{count}"
            images, output = write_images(name, style, shown[:count]), name.with_suffix(".safetensors")
            adapter = train(image=images, role="style", output=str(output), base=base)
            drawn = generate(base, [caption(content, STYLE) for content in others], [(adapter, 1.0)])
            seen = classify(tensor_from_pil(drawn))
            found = [(x.style == style, x.content == one) for x, one in zip(seen, others, strict=True)]
            right[count] += [(in_style, in_style and content) for in_style, content in found]
            of_style, both = sum(x for x, _ in found), sum(x and c for x, c in found)
            print(f"| {style} | {count} | {of_style} of {len(found)} | {both} of {len(found)} |", flush=True)
            marks = [x for x, _ in found[:SHOWN]]
            panels.append(plots.Panel(f"trained on {count}", drawn[:SHOWN], others[:SHOWN], marks))
    for count, rows in right.items():
        of_style, both = (sum(values) / len(rows) for values in zip(*rows, strict=True))
        print(f"| all | {count} | {of_style:.0%} of {len(rows)} | {both:.0%} |")
    columns = max(COUNTS) + SHOWN * len(COUNTS)
    figure = plots.sheet(panels, columns, "Trained on one image of a style, or on four; green: the style is right")
    plots.save(figure, out.with_suffix(".png"), True)


if __name__ == "__main__":
    main()
