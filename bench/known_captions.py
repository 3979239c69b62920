"""Each built-in base's drawings of captions that it knows, beside the truth: OUT/known_captions.png.

    python bench/known_captions.py

Contents and styles are drawn at random, not chosen by eye; two of the styles are hands.
"""

import torch

from harness import arguments
from qrlora import plots
from qrlora.built_in_bases import built_in_bases
from qrlora.families import open_base
from qrlora.sampling import generate
from qrlora.world.captions import caption
from qrlora.world.drawings import HANDS, contents_drawn_by, known_contents
from qrlora.world.ground_truth import true_image
from qrlora.world.styles import STYLES

COLUMNS = 8
HAND_COLUMNS = ("twemoji", "fluent-3d")


def captions(seed: int) -> list[tuple[str, str]]:
    """Contents with styles, each another one; the last are hands that drew the content."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(known_contents()), generator=generator).tolist()
    names = [known_contents()[k] for k in order]
    styles = [[*STYLES][k] for k in torch.randperm(len(STYLES), generator=generator).tolist()]
    functional = list(zip(names[: COLUMNS - len(HAND_COLUMNS)], styles, strict=False))
    left = names[len(functional) :]
    drawn = [
        next(x for x in left[k * len(left) // 2 :] if x in contents_drawn_by(h)) for k, h in enumerate(HAND_COLUMNS)
    ]
    return functional + list(zip(drawn, HAND_COLUMNS, strict=True))


def main() -> None:
    options = arguments(__doc__).parse_args()
    asked = captions(seed=0)
    titles = [f"{content}\n{HANDS[style].words if style in HANDS else style}" for content, style in asked]
    panels = [plots.Panel("the truth", [true_image(*one) for one in asked], titles)]
    for name in built_in_bases():
        base = open_base(name, "cpu", "float32")
        steps = {"steps": 2} if options.quick else {}
        images = generate(base, [caption(*one) for one in asked], seed=[0] * len(asked), **steps)
        panels.append(plots.Panel(name, images))
    figure = plots.sheet(panels, COLUMNS, "Captions that the built-in bases know, each drawn once, and the truth")
    print(plots.save(figure, options.folder / "known_captions.png", True))


if __name__ == "__main__":
    main()
