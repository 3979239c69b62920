"""What a built-in base can do, in figures: ``python -m qrlora.world.base_scores tiny-sdxl``.

*Base*: random captions of known things and styles, drawn and shown to the judges.  *Personalisation*: adapters for
held-out things and styles, each from one true picture, alone and merged by addition.  The figures go into the base's
folder as ``scores.json``, and from there into its model card.  A *learning curve* is the first of both for checkpoints.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..adapter import Adapter
from ..config import TrainConfig
from ..families import Base, open_base
from ..files import load
from ..sampling import generate
from ..training import train
from .base_architectures import BASES
from .captions import CONTENT, LEARN_CONTENT, STYLE, caption
from .classifiers import classify
from .demo import to_tensor, true_image
from .drawings import held_out_contents, known_contents, true_pictures
from .model_card import write_card
from .pretrain import Pretraining, Run, write_pipeline
from .ssim import ssim
from .styles import HELD_OUT_STYLES, STYLES

Say = Callable[[str], Any]
BATCH = 50


def share(right: list[bool]) -> float:
    return sum(right) / len(right)


def base_scores(base: Base, count: int = 500, seed: int = 0) -> dict[str, float]:
    """Random known captions: share whose picture shows the right content among all, and the right style; mean SSIM
    with the true picture, beside that of the true picture after the VAE and back, with its PSNR in dB."""
    generator = torch.Generator().manual_seed(seed)
    names, styles = known_contents(), tuple(STYLES)
    pairs = [
        (names[int(torch.randint(len(names), (), generator=generator))], styles[int(s)])
        for s in torch.randint(len(styles), (count,), generator=generator)
    ]
    pictures = generate(base, [caption(*pair) for pair in pairs], seed=list(range(count)), batch_size=BATCH)
    drawn = to_tensor(pictures)
    verdicts = classify(drawn)
    truth = torch.cat([true_pictures([c], s) for c, s in pairs])
    with torch.no_grad():
        vae = base.pipe.vae
        latents = [vae.encode(x * 2 - 1).latents for x in truth.to(vae.dtype).split(BATCH)]
        again = torch.cat([vae.decode(z).sample.float() for z in latents]).cpu() / 2 + 0.5
    noise = (again.clamp(0, 1) - truth).square().flatten(1).mean(1)
    return {
        "captions": count,
        "ssim": float(ssim(drawn, truth).mean()),
        "vae_ssim": float(ssim(again.clamp(0, 1), truth).mean()),
        "vae_psnr": float(-10 * noise.log10().mean()),
        "content": share([v.content == c for v, (c, _) in zip(verdicts, pairs, strict=True)]),
        "style": share([v.style == s for v, (_, s) in zip(verdicts, pairs, strict=True)]),
    }


def personalisation(
    base: Base, folder: Path, contents: int = 12, styles: int = 6, method: str = "qr", say: Say = print, **settings: Any
) -> dict[str, Any]:
    """Held-out things and styles, learnt from one picture each, alone and as every pair merged by plain addition.

    Adapters that are in the folder already are not learnt again.

    Returns: shares of pictures that the judges name correctly.  ``content_alone`` is among the held-out contents,
             ``merged_*`` among all; ``merged_both`` is content and style right in one picture.  ``by_style`` is
             (style alone, merged both) of each style.
    """
    folder.mkdir(parents=True, exist_ok=True)
    every = len(held_out_contents()) // contents
    things, manners = held_out_contents()[::every][:contents], tuple(HELD_OUT_STYLES)[:styles]
    known = known_contents()

    def learnt(role: Any, name: str, content: str, style: str, prompt: str) -> Adapter:
        output = folder / f"{role}-{name.replace(' ', '-')}-{method}.safetensors"
        if not output.exists():
            image = output.with_suffix(".png")
            true_image(content, style).save(image)
            started = time.monotonic()
            train(
                TrainConfig(image=image, role=role, prompt=prompt, output=output, method=method, **settings), base=base
            )
            say(f"{role} {name}: {time.monotonic() - started:.0f} s")
        return load(output)

    content = {name: learnt("content", name, name, "plain", LEARN_CONTENT) for name in things}
    style = {}
    for k, name in enumerate(manners):
        shown = known[(k + 1) * len(known) // (len(manners) + 1)]
        style[name] = learnt("style", name, shown, name, caption(shown, STYLE))
    return {"pairs": len(content) * len(style), **_judged(base, content, style)}


def _judged(base: Base, content: dict[str, Adapter], style: dict[str, Adapter]) -> dict[str, Any]:
    """The shares of `personalisation`: 4 pictures of each content, 12 known things in each style, 2 of each pair."""
    content_alone: list[bool] = []
    for name, adapter in content.items():
        pictures = generate(base, f"a {CONTENT}", [(adapter, 1.0)], count=4)
        content_alone += [v.content == name for v in classify(to_tensor(pictures), among=held_out_contents())]
    others = known_contents()[5 :: len(known_contents()) // 12]
    style_alone: dict[str, float] = {}
    for name, adapter in style.items():
        pictures = generate(base, [caption(other, STYLE) for other in others], [(adapter, 1.0)], batch_size=BATCH)
        style_alone[name] = share([v.style == name for v in classify(to_tensor(pictures))])
    pairs: dict[str, list[tuple[bool, bool, bool]]] = {name: [] for name in style}
    for s, manner in style.items():
        for c, thing in content.items():
            pictures = generate(base, caption(CONTENT, STYLE), [(thing, 1.0), (manner, 1.0)], count=2)
            tensor = to_tensor(pictures)
            among = classify(tensor, among=held_out_contents())
            pairs[s] += [
                (v.content == c, v.style == s, h.content == c) for v, h in zip(classify(tensor), among, strict=True)
            ]
    merged = [verdict for of_style in pairs.values() for verdict in of_style]
    return {
        "content_alone": share(content_alone),
        "style_alone": sum(style_alone.values()) / len(style_alone),
        "merged_content": share([c for c, _, _ in merged]),
        "merged_style": share([s for _, s, _ in merged]),
        "merged_both": share([c and s for c, s, _ in merged]),
        "merged_both_among_held_out": share([c and s for _, s, c in merged]),
        "by_style": {name: [style_alone[name], share([c and s for c, s, _ in pairs[name]])] for name in style},
    }


def learning_curve(name: str, checkpoints: list[Path], captions: int) -> list[dict[str, float]]:
    """`base_scores` of a built-in base at earlier points of its pre-training, from `pretrain --keep`'s checkpoints.

    Returns: rows of pictures seen in that run, ``content`` and ``style`` as in `base_scores`, fewest pictures first.
    """
    rows = []
    for path in checkpoints:
        settings = torch.load(path, map_location="cpu", weights_only=True)["settings"]
        run = Run(name, Pretraining(**settings), "cpu")
        run.load(path)
        with TemporaryDirectory() as folder:
            write_pipeline(run, Path(folder))
            shutil.copy(BASES / name / "qrlora.json", folder)
            scores = base_scores(open_base(folder, dtype="float32"), captions)
        rows.append({"samples": run.step * run.settings.batch_size, **scores})
    return sorted(rows, key=lambda row: row["samples"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", help="a built-in name or a folder")
    parser.add_argument("--captions", type=int, default=500)
    parser.add_argument("--contents", type=int, default=12, help="held-out things; 0 leaves personalisation out")
    parser.add_argument("--styles", type=int, default=6)
    parser.add_argument("--method", default="qr")
    parser.add_argument("--adapters", type=Path, default=Path("runs/adapters"), help="where the adapters are kept")
    parser.add_argument("--curve", type=Path, nargs="+", default=[], help="earlier checkpoints to score as well")
    parser.add_argument("--write", action="store_true", help="keep the figures in the base's folder")
    args = parser.parse_args()
    base = open_base(args.base, dtype="float32")
    scores: dict[str, Any] = {"base": base_scores(base, args.captions)}
    print(scores["base"], flush=True)
    if args.contents:
        scores[args.method] = personalisation(base, args.adapters, args.contents, args.styles, args.method)
        print(scores[args.method])
    if args.curve:
        scores["curve"] = learning_curve(args.base, args.curve, args.captions)
        print(scores["curve"])
    if args.write:
        path = BASES / args.base / "scores.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(kept | scores, indent=2) + "\n")
        print(write_card(path.parent))


if __name__ == "__main__":
    main()
