"""The model card (README.md) of a built-in base, generated from its training record and its scores."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..json_objects import read_json_object
from ..safetensors_files import read_safetensors
from ..text_files import write_text
from .classifier_training import VALIDATION_EVERY
from .classifiers import classifier_accuracy, measured_quality
from .drawings import HANDS, SIZE, contents, held_out_contents, known_contents
from .pretraining_settings import PretrainingSettings
from .styles import HELD_OUT_STYLES, STYLES

SCORE_LABELS = {
    "content_alone": "content adapter alone: content accuracy among the held-out contents",
    "style_alone": "style adapter alone, on known contents: style accuracy",
    "merged_content": "merged by addition: content accuracy among all contents",
    "merged_style": "merged by addition: style accuracy",
    "merged_both": "merged by addition: both correct, content among all",
    "merged_both_among_held_out": "merged by addition: both correct, content among the held-out ones",
}
"""Key of ``scores.json`` -> row of the card's table."""


def check_record(folder: Path) -> dict[str, Any]:
    """How the base in a folder was trained. Raises: OSError, ValueError: its ``training.json`` does not say so."""
    path = folder / "training.json"
    training = read_json_object(path)
    if missing := [name for name in ("settings", "loss", "machine") if name not in training]:
        raise ValueError(f"{path} has no {missing[0]!r}, as `python -m qrlora.world.pretrain` writes it")
    return training


def write_card(folder: Path) -> Path:
    """README.md of a base's folder from its ``training.json`` and ``scores.json``; returns the file."""
    training = check_record(folder)
    scores = json.loads((folder / "scores.json").read_text())
    name, accuracy, false_alarms = folder.name, classifier_accuracy(), measured_quality()["false_alarms"]
    methods = [key for key in scores if key not in ("base", "curve")]
    lines = [
        f"# {name}",
        "",
        f"A `{_pipeline_class(folder)}` with {_millions_of_parameters(folder):.0f} million parameters without its VAE, "
        f"pre-trained at {SIZE} x {SIZE} pixels on {len(known_contents())} contents, each drawn by up to "
        f"{sum(not hand.held_out for hand in HANDS.values())} hands (emoji sets), in {len(STYLES)} named styles and in "
        f"random styles. Held out from training: {len(held_out_contents())} contents, {len(HELD_OUT_STYLES)} styles "
        f"and {sum(hand.held_out for hand in HANDS.values())} hands, on which adapters are trained and evaluated. "
        "Its VAE was initialised from TAEF2 (MIT, copyright 2023 Ollin Boer Bohan). Sources and licences of the "
        "drawings and of TAEF2 are in NOTICE; the weights are under Apache-2.0.",
        "",
        "## Training",
        "",
        *_training_lines(name, training),
        "",
        f"## Scores (`python -m qrlora.world.base_scores {name} --write`)",
        "",
        "Content and style of generated images are scored by two classifiers. They know every content, style and hand; "
        f"held out from their training is one in {VALIDATION_EVERY} of the combinations of these, on whose true images "
        f"their accuracy is {accuracy['content']:.1%} (content, {len(contents())} classes) and "
        f"{accuracy['style']:.1%} (style), over "
        f"{accuracy['pictures']:.0f} images. Of wrong fusions, which have no true label, they accept "
        f"{false_alarms['content']:.0%} as some content and {false_alarms['style']:.0%} as some style.",
        "",
        f"| {scores['base']['captions']} random known captions | score |",
        "|---|---|",
        f"| content accuracy among all {len(contents())} | {scores['base']['content']:.1%} |",
        f"| style accuracy | {scores['base']['style']:.1%} |",
        f"| SSIM with the true image, mean | {scores['base']['ssim']:.3f} |",
        f"| VAE round trip of the true images: SSIM, PSNR | {scores['base']['vae_ssim']:.3f}, "
        f"{scores['base']['vae_psnr']:.1f} dB |",
        *_hand_rows(scores["base"]),
        "",
        *_curve_table(scores.get("curve", [])),
        *_personalisation_tables(scores, methods),
    ]
    path = folder / "README.md"
    write_text(path, "\n".join(lines))
    return path


def _pipeline_class(folder: Path) -> str:
    return json.loads((folder / "model_index.json").read_text())["_class_name"]


def _millions_of_parameters(folder: Path) -> float:
    """Parameters of all components but the VAE, in millions, from the weight files."""
    files = [file for file in folder.glob("*/*.safetensors") if file.parent.name != "vae"]
    return sum(tensor.numel() for file in files for tensor in read_safetensors(file)[0].values()) / 1e6


def _command_options(settings: dict[str, Any]) -> str:
    """The card's command: the settings of a run that differ from the defaults, as options of `pretrain`."""
    defaults = asdict(PretrainingSettings())
    chosen = {key: value for key, value in settings.items() if key in defaults and value != defaults[key]}
    return "".join(f" --{key.replace('_', '-')} {value}" for key, value in chosen.items())


def _training_lines(name: str, training: dict[str, Any]) -> list[str]:
    """The card's lines on how the base was trained."""
    settings, losses = training["settings"], training["loss"]
    before = _training_lines(name, training["before"]) if "before" in training else []
    curve = ", ".join(f"{samples // 1000}k: {loss:.3f}" for samples, loss in losses)
    clock = f" --within {training['within']:g}" if "within" in training else ""
    excerpt = " --excerpt" if training.get("excerpt") else ""
    return [
        *before,
        f"- `python -m qrlora.world.pretrain {name}{_command_options(settings)}{clock}{excerpt}`: "
        f"{training.get('shown', settings['samples']):,} images in batches of {settings['batch_size']}, "
        f"{training.get('optimizer', 'AdamW')} at {settings['learning_rate']:g}, moving average of the weights.",
        f"  {training['machine'][0].upper()}{training['machine'][1:]}",
        f"  Loss after so many images: {curve}.",
        *_drawings_line(training),
    ]


def _drawings_line(training: dict[str, Any]) -> list[str]:
    """The card's line on how many of the known contents the base saw by each hand; none of records without it."""
    if "drawings" not in training:
        return []
    counts = ", ".join(f"{hand} {count}" for hand, count in training["drawings"].items())
    excerpt = ", the excerpt that ships" if training.get("excerpt") else ""
    return [f"  Contents that it saw by each hand: {counts}{excerpt}."]


def _hand_rows(scores: dict[str, float]) -> list[str]:
    """The card's rows on captions that name a hand; none of scores without them."""
    if "hand" not in scores:
        return []
    return [
        f"| {scores['hand_captions']} captions that name a hand: content accuracy | {scores['hand_content']:.1%} |",
        f"| taken for that hand's, and true drawings so | {scores['hand']:.1%}, {scores['hand_truth']:.1%} |",
        f"| SSIM with that hand's drawing, mean | {scores['hand_ssim']:.3f} |",
    ]


def _personalisation_tables(scores: dict[str, Any], methods: list[str]) -> list[str]:
    """The card's two tables of adapters, with a column for each evaluated method; empty where one was not asked."""
    if not methods:
        return []
    by_style = [scores[method]["by_style"] for method in methods]
    styles = dict.fromkeys(style for of_method in by_style for style in of_method)
    return [
        f"| held-out contents and styles, one image each | {' | '.join(methods)} |",
        "|---|" + "---|" * len(methods),
        f"| pairs | {' | '.join(str(scores[m]['pairs']) for m in methods)} |",
        *(
            f"| {label} | {' | '.join(f'{scores[m][key]:.1%}' for m in methods)} |"
            for key, label in SCORE_LABELS.items()
        ),
        "",
        f"| style accuracy alone / both correct when merged | {' | '.join(methods)} |",
        "|---|" + "---|" * len(methods),
        *(
            f"| {style} | {' | '.join('{:.0%} / {:.0%}'.format(*x[style]) if style in x else '' for x in by_style)} |"
            for style in styles
        ),
        "",
    ]


def _curve_table(curve: list[dict[str, float]]) -> list[str]:
    """The card's table of scores at checkpoints of the last run, which show whether more training would help."""
    if not curve:
        return []
    rows = [f"| {row['samples']:,.0f} | {row['content']:.1%} | {row['style']:.1%} |" for row in curve]
    return ["| images seen in the last run | content accuracy | style accuracy |", "|---|---|---|", *rows, ""]
