"""The model card of a built-in base, written from what was measured: never by hand."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..safetensors_files import read
from .classifiers import accuracy_on_unseen, measured
from .drawings import HANDS, SIZE, contents, held_out_contents, known_contents
from .pretrain import Pretraining
from .styles import HELD_OUT_STYLES, STYLES

NAMES = {
    "content_alone": "content adapter alone: thing recognised among the held-out ones",
    "style_alone": "style adapter alone, on known things: style recognised",
    "merged_content": "merged by addition: thing recognised among all",
    "merged_style": "merged by addition: style recognised",
    "merged_both": "merged by addition: both right, thing among all",
    "merged_both_among_held_out": "merged by addition: both right, thing among the held-out ones",
}


def write_card(folder: Path) -> Path:
    """README.md of a base's folder from its ``training.json`` and ``scores.json``; returns the file."""
    training = json.loads((folder / "training.json").read_text())
    scores = json.loads((folder / "scores.json").read_text())
    name, classifiers, alarms = folder.name, accuracy_on_unseen(), measured()["false_alarms"]
    methods = [key for key in scores if key not in ("base", "curve")]
    lines = [
        f"# {name}",
        "",
        f"A real `{_pipeline(folder)}` of {_millions(folder):.0f} million parameters beside its VAE, pre-trained at "
        f"{SIZE} x {SIZE} pixels on {len(known_contents())} contents, each drawn by up to "
        f"{sum(not hand.held_out for hand in HANDS.values())} real hands (emoji sets), in {len(STYLES)} styles with "
        f"words and endless random ones. It has never seen {len(held_out_contents())} further contents, "
        f"{len(HELD_OUT_STYLES)} further styles and {sum(hand.held_out for hand in HANDS.values())} further hands: "
        "these are what adapters learn. Whose the drawings are stands in NOTICE; the weights are under Apache-2.0.",
        "",
        "## How it was trained",
        "",
        *_training(name, training),
        "",
        f"## Scores (`python -m qrlora.world.base_scores {name} --write`)",
        "",
        f"The classifiers name true pictures that they have not seen with {classifiers['content']:.1%} (content, among "
        f"{len(contents())}) and {classifiers['style']:.1%} (style) accuracy; {classifiers['pictures']:.0f} pictures. "
        f"They are not strict yet: of wrong fusions, {alarms['content']:.0%} pass as a content and "
        f"{alarms['style']:.0%} as a style.",
        "",
        f"| {scores['base']['captions']} random known captions | share |",
        "|---|---|",
        f"| thing recognised among all {len(contents())} | {scores['base']['content']:.1%} |",
        f"| style recognised | {scores['base']['style']:.1%} |",
        f"| SSIM with the true picture, mean | {scores['base']['ssim']:.3f} |",
        f"| the VAE's own round trip of the true pictures: SSIM, PSNR | {scores['base']['vae_ssim']:.3f}, "
        f"{scores['base']['vae_psnr']:.1f} dB |",
        "",
        *_curve(scores.get("curve", [])),
        *_personalisation(scores, methods),
    ]
    path = folder / "README.md"
    path.write_text("\n".join(lines))
    return path


def _pipeline(folder: Path) -> str:
    return json.loads((folder / "model_index.json").read_text())["_class_name"]


def _millions(folder: Path) -> float:
    """Parameters of all parts but the VAE, in millions, from the files' headers."""
    files = [file for file in folder.glob("*/*.safetensors") if file.parent.name != "vae"]
    return sum(tensor.numel() for file in files for tensor in read(file)[0].values()) / 1e6


def _options(settings: dict[str, Any]) -> str:
    """The settings of a run that are not the script's own choice, as it takes them."""
    usual = asdict(Pretraining())
    chosen = {key: value for key, value in settings.items() if key in usual and value != usual[key]}
    return "".join(f" --{key.replace('_', '-')} {value}" for key, value in chosen.items())


def _training(name: str, training: dict[str, Any]) -> list[str]:
    settings, losses = training["settings"], training["loss"]
    before = _training(name, training["before"]) if "before" in training else []
    curve = ", ".join(f"{samples // 1000}k: {loss:.3f}" for samples, loss in losses)
    return [
        *before,
        f"- `python -m qrlora.world.pretrain {name}{_options(settings)}`: "
        f"{training.get('shown', settings['samples']):,} pictures in batches of {settings['batch_size']}, "
        f"{training.get('optimizer', 'AdamW')} at {settings['learning_rate']:g}, weights averaged over steps.",
        f"  {training['machine'][0].upper()}{training['machine'][1:]}",
        f"  Loss against pictures seen: {curve}.",
    ]


def _personalisation(scores: dict[str, Any], methods: list[str]) -> list[str]:
    """A column for each method whose adapters were measured."""
    if not methods:
        return []
    return [
        f"| held-out things and styles, one picture each | {' | '.join(methods)} |",
        "|---|" + "---|" * len(methods),
        f"| pairs | {' | '.join(str(scores[m]['pairs']) for m in methods)} |",
        *(f"| {told} | {' | '.join(f'{scores[m][key]:.1%}' for m in methods)} |" for key, told in NAMES.items()),
        "",
        f"| style alone / merged both | {' | '.join(methods)} |",
        "|---|" + "---|" * len(methods),
        *(
            f"| {style} | {' | '.join('{:.0%} / {:.0%}'.format(*scores[m]['by_style'][style]) for m in methods)} |"
            for style in scores[methods[0]]["by_style"]
        ),
        "",
    ]


def _curve(curve: list[dict[str, float]]) -> list[str]:
    """Scores of checkpoints of the last run, which show whether more training would help."""
    if not curve:
        return []
    rows = [f"| {row['samples']:,.0f} | {row['content']:.1%} | {row['style']:.1%} |" for row in curve]
    return ["| pictures seen in the last run | thing recognised | style recognised |", "|---|---|---|", *rows, ""]
