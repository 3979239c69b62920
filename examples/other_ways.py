"""Two adapters fused by several methods: one image of each, side by side.

python examples/other_ways.py content.safetensors style.safetensors dog.png cat.png --ways lora,ziplora,k-lora
"""

import argparse
from pathlib import Path

from PIL import Image

import qrlora
from qrlora.baselines import FusionInputs, TrainingImage, fusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapters", nargs=2, type=Path, help="of a content and of a style")
    parser.add_argument(
        "pictures", nargs=2, type=Path, help="the training images of both; ZipLoRA trains on them again"
    )
    parser.add_argument("--shows", default="cat", help="what the style picture shows")
    parser.add_argument("--base", default="tiny-sdxl")
    parser.add_argument("--ways", default="lora,ties,ziplora,k-lora", help="rows of qrlora.baselines.FUSIONS")
    parser.add_argument("--output", type=Path, default=Path("out/other_ways.png"))
    wanted = parser.parse_args()

    images = [
        TrainingImage(wanted.pictures[0], "a <c>"),
        TrainingImage(wanted.pictures[1], f"a {wanted.shows} in <s> style"),
    ]
    task = FusionInputs(qrlora.open_base(wanted.base), *(qrlora.load(path) for path in wanted.adapters), *images)
    drawn = [fusion(way).fuse(task).draw(["a <c> in <s> style"], [0])[0] for way in wanted.ways.split(",")]

    width, height = drawn[0].size
    strip = Image.new("RGB", (width * len(drawn), height))
    for k, picture in enumerate(drawn):
        strip.paste(picture, (k * width, 0))
    wanted.output.parent.mkdir(parents=True, exist_ok=True)
    strip.save(wanted.output)
    print(f"{len(drawn)} ways, {wanted.ways}: {wanted.output}")


if __name__ == "__main__":
    main()
