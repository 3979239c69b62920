"""Evaluate a built-in base and adapters on it by the classifiers: ``python -m qrlora.world.base_scores tiny-sdxl``.

*Base*: images generated from random captions of known contents and styles, and of contents by known hands.
*Personalisation*: adapters for held-out contents and styles, each trained on one true image, alone and merged by
addition.  The scores are written to the base's folder as ``scores.json`` and shown in its model card.  A *learning
curve* is the base's scores at earlier checkpoints.
"""

import argparse
import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..adapter import Adapter
from ..built_in_bases import folder_of
from ..config import TrainConfig
from ..families import Base, open_base
from ..families.adapter_compatibility import check_adapter_fits_base, weight_difference
from ..files import load
from ..json_objects import read_json_object
from ..sampling import generate
from ..text_files import write_text
from ..training import train
from ..training.config_checks import check_config
from .base_architectures import ARCHITECTURES
from .base_export import write_pipeline
from .captions import CONTENT, CONTENT_TRAINING_PROMPT, STYLE, caption
from .classifiers import classify
from .command_line import at_least, run_command
from .drawings import KNOWN_HANDS, PLAIN_HAND, contents_drawn_by, held_out_contents, known_contents
from .edition import check_edition_of_base
from .ground_truth import true_image, true_images
from .image_tensors import tensor_from_pil
from .model_card import check_record, write_card
from .pretraining_checkpoint import check_weights_fit, read_checkpoint, settings_of
from .pretraining_state import PretrainingRun, trained_base_folder
from .ssim import ssim
from .styles import HELD_OUT_STYLES, STYLES

Log = Callable[[str], Any]
BATCH = 50


def fraction_true(values: list[bool]) -> float:
    return sum(values) / len(values)


def base_scores(base: Base, count: int = 500, seed: int = 0) -> dict[str, float]:
    """Scores of images generated from random known captions.

    Returns: ``captions``: their count.  ``content``, ``style``: fraction classified correctly, among all contents and
             styles.  ``ssim``: mean SSIM with the true image.  ``vae_ssim``, ``vae_psnr`` (dB): SSIM and PSNR of the
             true image after the VAE's round trip, the upper bound of what a base can reach.
    """
    check_edition_of_base(base)
    generator = torch.Generator().manual_seed(seed)
    names, styles = known_contents(), tuple(STYLES)
    pairs = [
        (names[int(torch.randint(len(names), (), generator=generator))], styles[int(s)])
        for s in torch.randint(len(styles), (count,), generator=generator)
    ]
    images = generate(base, [caption(*pair) for pair in pairs], seed=list(range(count)), batch_size=BATCH)
    drawn = tensor_from_pil(images)
    predictions = classify(drawn)
    truth = torch.cat([true_images([c], s) for c, s in pairs])
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
        "content": fraction_true([v.content == c for v, (c, _) in zip(predictions, pairs, strict=True)]),
        "style": fraction_true([v.style == s for v, (_, s) in zip(predictions, pairs, strict=True)]),
    }


def hand_scores(base: Base, count: int = 100) -> dict[str, float]:
    """Scores of images from captions of known contents as known hands drew them, "a dog face in twemoji style".

    The hands take turns; each one's contents are evenly spaced among those of its sheet that is read here, which is the
    shipped excerpt unless `render_sheets` made the full ones.

    Returns: ``hand_captions``: their count.  ``hand_content``, ``hand``: fraction whose content is right, and that are
             taken for that hand's; ``hand_truth``: that of the true drawings, which the classifier cannot tell apart
             either.  ``hand_ssim``: mean SSIM with what the hand drew.
    """
    check_edition_of_base(base)
    hands, known = [hand for hand in KNOWN_HANDS if hand != PLAIN_HAND], {*known_contents()}
    drawn_by = [[name for name in contents_drawn_by(hand) if name in known] for hand in hands]
    of_each = -(-count // len(hands))
    pairs = []
    for turn, of_hand in (divmod(k, len(hands)) for k in range(count)):
        names = drawn_by[of_hand]
        pairs.append((names[turn * len(names) // of_each], hands[of_hand]))
    images = generate(base, [caption(*pair) for pair in pairs], seed=list(range(count)), batch_size=BATCH)
    drawn, truth = tensor_from_pil(images), torch.cat([true_images([c], hand) for c, hand in pairs])
    found, wanted = classify(drawn), classify(truth)
    named = [
        [v.style == "plain" and v.hand == hand for v, (_, hand) in zip(x, pairs, strict=True)] for x in (found, wanted)
    ]
    return {
        "hand_captions": count,
        "hand_content": fraction_true([v.content == c for v, (c, _) in zip(found, pairs, strict=True)]),
        "hand": fraction_true(named[0]),
        "hand_truth": fraction_true(named[1]),
        "hand_ssim": float(ssim(drawn, truth).mean()),
    }


def check_adapters(base: Base, folder: Path, method: str) -> None:
    """Check that a method's adapters in a folder were trained on this base's weights, before anything is scored.

    Raises: OSError.  ValueError: one was not, so that it would be scored in the place of one that was.
    """
    for path in sorted(folder.glob(f"*-{method}.safetensors")):
        adapter, fits = load(path), False
        with contextlib.suppress(ValueError):
            check_adapter_fits_base(base, adapter)
            fits = not weight_difference(base, adapter)
        if not fits:
            raise ValueError(f"{path} was not trained on the weights of {base.name}: give --adapters another folder")


def personalisation_scores(
    base: Base, folder: Path, contents: int = 12, styles: int = 6, method: str = "qr", log: Log = print, **settings: Any
) -> dict[str, Any]:
    """Scores of adapters for held-out contents and styles, each trained on one image; alone, and every pair merged.

    Adapters that are in the folder already are not trained again.

    Returns: fractions of generated images that are classified correctly.  ``content_alone``: among the held-out
             contents; ``merged_*``: among all; ``merged_both``: content and style correct in one image;
             ``by_style``: {style: (style alone, merged both)}.
    Raises:  as `check_adapters`.
    """
    check_adapters(base, folder, method)
    folder.mkdir(parents=True, exist_ok=True)
    every = len(held_out_contents()) // contents
    content_names, style_names = held_out_contents()[::every][:contents], tuple(HELD_OUT_STYLES)[:styles]
    known = known_contents()

    def train_or_load(role: Any, name: str, content: str, style: str, prompt: str) -> Adapter:
        """An adapter for the personalisation scores, trained unless it is in the folder."""
        output = folder / f"{role}-{name.replace(' ', '-')}-{method}.safetensors"
        if not output.exists():
            image = output.with_suffix(".png")
            true_image(content, style).save(image)
            started = time.monotonic()
            train(
                TrainConfig(image=image, role=role, prompt=prompt, output=output, method=method, **settings), base=base
            )
            log(f"{role} {name}: {time.monotonic() - started:.0f} s")
        return load(output)

    content = {name: train_or_load("content", name, name, "plain", CONTENT_TRAINING_PROMPT) for name in content_names}
    style = {}
    for k, name in enumerate(style_names):
        shown = known[(k + 1) * len(known) // (len(style_names) + 1)]
        style[name] = train_or_load("style", name, shown, name, caption(shown, STYLE))
    return {"pairs": len(content) * len(style), **_personalisation_fractions(base, content, style)}


def _personalisation_fractions(base: Base, content: dict[str, Adapter], style: dict[str, Adapter]) -> dict[str, Any]:
    """`personalisation_scores` from 4 images of each content, 12 known contents in each style, and 2 of each pair."""
    content_alone: list[bool] = []
    for name, adapter in content.items():
        images = generate(base, f"a {CONTENT}", [(adapter, 1.0)], count=4)
        content_alone += [v.content == name for v in classify(tensor_from_pil(images), among=held_out_contents())]
    others = known_contents()[5 :: len(known_contents()) // 12]
    style_alone: dict[str, float] = {}
    for name, adapter in style.items():
        images = generate(base, [caption(other, STYLE) for other in others], [(adapter, 1.0)], batch_size=BATCH)
        style_alone[name] = fraction_true([v.style == name for v in classify(tensor_from_pil(images))])
    pairs: dict[str, list[tuple[bool, bool, bool]]] = {name: [] for name in style}
    for s, style_adapter in style.items():
        for c, content_adapter in content.items():
            applied = [(content_adapter, 1.0), (style_adapter, 1.0)]
            images = generate(base, caption(CONTENT, STYLE), applied, count=2)
            tensor = tensor_from_pil(images)
            among = classify(tensor, among=held_out_contents())
            pairs[s] += [
                (v.content == c, v.style == s, h.content == c) for v, h in zip(classify(tensor), among, strict=True)
            ]
    merged = [prediction for of_style in pairs.values() for prediction in of_style]
    return {
        "content_alone": fraction_true(content_alone),
        "style_alone": sum(style_alone.values()) / len(style_alone),
        "merged_content": fraction_true([c for c, _, _ in merged]),
        "merged_style": fraction_true([s for _, s, _ in merged]),
        "merged_both": fraction_true([c and s for c, s, _ in merged]),
        "merged_both_among_held_out": fraction_true([c and s for _, s, c in merged]),
        "by_style": {name: [style_alone[name], fraction_true([c and s for c, s, _ in pairs[name]])] for name in style},
    }


def check_checkpoints(name: str, checkpoints: Sequence[Path]) -> None:
    """Check that files are checkpoints of a built-in base's pre-training, before any is scored.

    Raises: OSError.  ValueError: one is not; or the base is none that is pre-trained here.
    """
    if checkpoints and name not in ARCHITECTURES:
        raise ValueError(f"{name} is not pre-trained by this version, which has {', '.join(ARCHITECTURES)}: no --curve")
    for path in checkpoints:
        if (base := read_checkpoint(path).get("base", name)) != name:  # older checkpoints name no base
            raise ValueError(f"{path} is of {base}, the scores are {name}'s: give --curve its own checkpoints")


def averaged_run(name: str, path: Path) -> PretrainingRun:
    """A run with the weights of a checkpoint, whatever images these were trained on: to be scored, not to go on."""
    state = read_checkpoint(path)
    run = PretrainingRun(name, replace(settings_of(state), start=""), "cpu")  # what it began from may be gone
    check_weights_fit(path, state, run.average)
    run.restore_weights(state)
    return run


def learning_curve_scores(name: str, checkpoints: list[Path], captions: int) -> list[dict[str, float]]:
    """`base_scores` of a built-in base at checkpoints of its pre-training, as `pretrain --keep` writes them.

    Returns: a row for each checkpoint, the earliest first: `base_scores` and ``samples``, the images seen until then.
    """
    check_checkpoints(name, checkpoints)
    rows = []
    for path in checkpoints:
        run = averaged_run(name, path)
        with TemporaryDirectory() as folder:
            write_pipeline(run, Path(folder))
            shutil.copy(folder_of(name) / "qrlora.json", folder)
            scores = base_scores(open_base(folder, dtype="float32"), captions)
        rows.append({"samples": run.step * run.settings.batch_size, **scores})
    return sorted(rows, key=lambda row: row["samples"])


def command_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", help="a built-in name or a folder")
    parser.add_argument("--captions", type=at_least(1), default=500)
    contents = "held-out contents; 0 leaves personalisation out"
    parser.add_argument("--contents", type=at_least(0, len(held_out_contents())), default=12, help=contents)
    parser.add_argument("--styles", type=at_least(1, len(HELD_OUT_STYLES)), default=6)
    parser.add_argument("--method", default="qr")
    adapters = "where the adapters are kept; default runs/adapters/BASE"
    parser.add_argument("--adapters", type=Path, help=adapters)
    parser.add_argument("--curve", type=Path, nargs="+", default=[], help="earlier checkpoints to score as well")
    parser.add_argument("--write", action="store_true", help="write the scores into the base's folder")
    return parser


def score(options: argparse.Namespace) -> None:
    """What the command does: score a base, adapters on it and its checkpoints, and write it down."""
    folder = trained_base_folder(options.base).absolute()
    base = open_base(options.base, dtype="float32")
    adapters = options.adapters or Path("runs/adapters") / folder.name
    check_checkpoints(folder.name, options.curve)
    if options.contents:
        check_config(TrainConfig(method=options.method), None)
        check_adapters(base, adapters, options.method)
    if options.write:
        check_record(folder)
    scores: dict[str, Any] = {"base": base_scores(base, options.captions) | hand_scores(base, options.captions)}
    print(scores["base"], flush=True)
    if options.contents:
        scores[options.method] = personalisation_scores(
            base, adapters, options.contents, options.styles, options.method
        )
        print(scores[options.method])
    if options.curve:
        scores["curve"] = learning_curve_scores(folder.name, options.curve, options.captions)
        print(scores["curve"])
    if options.write:
        path = folder / "scores.json"
        kept = read_json_object(path) if path.exists() else {}
        write_text(path, json.dumps(kept | scores, indent=2) + "\n")
        print(write_card(folder))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command that scores a built-in base."""
    run_command(score, command_parser(), arguments)


if __name__ == "__main__":
    main()
