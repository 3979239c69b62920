"""`qrlora survey new`: pictures under random names, a plan, its power."""

import hashlib
import io
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ..output_files import atomic, check_writable
from ..text_files import write_text
from .plan import PICTURES, PLAN, TABLE, Picture, Plan, pictures_csv, write_plan
from .power import power
from .sheets import make_items, make_sheets
from .study_images import StudyImage, find_study_images
from .texts import questions, texts

INPUTS, COMPARISONS = 5, 8
"""Of a sheet that takes about ten minutes with two methods."""


def make_study(
    source: Path,
    folder: Path,
    *,
    methods: Sequence[str] = (),
    forms: Sequence[str] = ("levels", "pairs"),
    raters: int = 60,
    seeds: int = 1,
    title: str = "",
    contact: str = "",
    language: str = "en",
    seed: int = 0,
    simulations: int = 200,
    on_step: Callable[[int, int], Any] | None = None,
) -> Plan:
    """Make the folder of a new rating study: images, pictures.csv, plan.toml.

    Args:   source, methods, seeds: see `study_images.find_study_images`.  forms: "levels", "pairs".
    Raises: OSError, ValueError: the source holds no such pictures; the folder holds a plan.
    """
    check_writable(folder / PLAN)
    found, chosen = find_study_images(source, methods, seeds)
    if len(chosen) < 2 and "pairs" in forms:
        raise ValueError(f"pairs need two methods, got {', '.join(chosen)}: --form levels")
    asked = questions(language, forms)
    count = len({x.pair for x in found if x.kind == "result"})
    inputs = min(INPUTS, count) if "levels" in forms else 0
    duels = len(list(combinations(chosen, 2))) if "pairs" in forms else 0
    pictures = _write_anonymous_images(found, folder)
    text = pictures_csv(pictures)
    words = texts(language)
    plan = Plan(
        title=title or words["title"],
        about=words["about"],
        contact=contact,
        language=language,
        seed=seed,
        methods=chosen,
        pictures_sha256=hashlib.sha256(text.encode()).hexdigest(),
        inputs=inputs,
        comparisons=duels * max(1, min(count, round(COMPARISONS / duels))) if duels else 0,
        checks=2,
        repeats=2,
        raters=raters,
        sheets=2 * raters,
        failed_checks=2,
        least_seconds=1.0,
        effect=0.5,
        win_rate=0.6,
        questions=asked,
    )
    stuff = make_items(plan, pictures)
    make_sheets(plan, stuff)
    plan = replace(plan, power=tuple(power(plan, stuff, simulations, on_step)))
    write_text(folder / TABLE, text)
    return write_plan(plan, folder)


def _write_anonymous_images(found: Sequence[StudyImage], folder: Path) -> list[Picture]:
    """Write a new study's images under random names, in one lossless format, without metadata."""
    pictures = []
    for x in found:
        buffer = io.BytesIO()
        x.image.save(buffer, "WEBP", lossless=True)
        name = f"{secrets.token_hex(12)}.webp"
        with atomic(folder / PICTURES / name) as file:
            file.write(buffer.getvalue())
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        pictures.append(Picture(name, x.kind, x.method, x.pair, x.seed, digest, x.scores))
    return pictures
