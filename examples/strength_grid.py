"""One picture for each pair of content and style strengths, as a captioned plot (the paper's figure 7).

python examples/strength_grid.py content.safetensors style.safetensors --base tiny-flux
"""

import argparse
from pathlib import Path

import qrlora
from qrlora import plots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("content", type=Path)
    parser.add_argument("style", type=Path)
    parser.add_argument("--base", default="tiny-flux")
    parser.add_argument("--output", type=Path, default=Path("grid.png"))
    wanted = parser.parse_args()

    base = qrlora.open_base(wanted.base)
    down, across = [0.0, 0.5, 1.0], [0.0, 0.5, 1.0]
    adapters = (qrlora.load(wanted.content), qrlora.load(wanted.style))
    pictures = qrlora.grid(base, "a <c> in <s> style", *adapters, down, across, seed=0)
    plots.save(plots.strength_grid(pictures, down, across, title="a <c> in <s> style"), wanted.output)
    print(f"{len(down) * len(across)} pictures: {wanted.output}")


if __name__ == "__main__":
    main()
