"""Content and style from one image each: train two adapters, add them, generate the content in the style.

python examples/two_pictures.py dog.png painting.png --shows cat
"""

import argparse
from pathlib import Path

import qrlora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("content", type=Path, help="an image of the subject")
    parser.add_argument("style", type=Path, help="a picture in the style")
    parser.add_argument("--shows", default="cat", help="what the style picture shows")
    parser.add_argument("--base", default="tiny-flux", help="or stabilityai/stable-diffusion-xl-base-1.0")
    parser.add_argument("--folder", type=Path, default=Path("out/two_pictures"))
    wanted = parser.parse_args()

    base = qrlora.open_base(wanted.base)
    content = qrlora.train(
        qrlora.TrainConfig(base=wanted.base, image=wanted.content, output=wanted.folder / "content.safetensors"),
        base=base,
        on_step=lambda progress: print(f"\rcontent {progress.step}/{progress.steps}", end=""),
    )
    style = qrlora.train(
        qrlora.TrainConfig(
            base=wanted.base,
            image=wanted.style,
            role="style",
            prompt=f"a {wanted.shows} in <s> style",  # the subject is named, so that only the style is left to learn
            output=wanted.folder / "style.safetensors",
        ),
        base=base,
        on_step=lambda progress: print(f"\rstyle {progress.step}/{progress.steps}  ", end=""),
    )
    merged = qrlora.merge([content, style], [1.0, 1.0])
    qrlora.save(merged, wanted.folder / "merged.safetensors")

    (picture,) = qrlora.generate(base, "a <c> in <s> style", [(merged, 1.0)], seed=0)
    picture.save(wanted.folder / "merged.png")
    print(f"\nrank {merged.rank}, {len(merged.layers)} layers: {wanted.folder / 'merged.png'}")


if __name__ == "__main__":
    main()
