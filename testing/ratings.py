"""Small rating studies for the tests: pictures of noise, raters who answer by a known rule."""

import atexit
import csv
import hashlib
import json
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qrlora.survey.new_study import make_study
from qrlora.survey.plan import PICTURES, PLAN, TABLE, Picture, Plan, Question, read_plan
from qrlora.survey.rater_store import Study, now

WORDS = ("none", "poor", "rather poor", "rather good", "good", "perfect")
OVERALL = Question("overall", "levels", "How good?", WORDS)
BETTER = Question("preferred", "pairs", "Which is better?", ("Left", "Right", "Neither"))


def plan(methods: int = 2, inputs: int = 3, comparisons: int = 2, **told: Any) -> Plan:
    """A plan that was never written."""
    questions = (OVERALL,) * bool(inputs) + (BETTER,) * bool(comparisons)
    settings: dict[str, Any] = {"title": "t", "about": "", "contact": "", "language": "en", "seed": 0, "effect": 0.5}
    settings |= {"methods": tuple(f"m{k}" for k in range(methods)), "pictures_sha256": "", "win_rate": 0.6}
    settings |= {"inputs": inputs, "comparisons": comparisons, "checks": 2, "repeats": 2, "questions": questions}
    settings |= {"raters": 30, "sheets": 60, "failed_checks": 2, "least_seconds": 1.0}
    return Plan(**{**settings, **told})


def pictures(methods: int = 2, pairs: int = 8, seeds: int = 1, truth: bool = True) -> list[Picture]:
    """The pictures of such a plan, without files."""
    made = [Picture("noise", "noise", "", "", 0, "")]
    kinds = ("content", "style", *(["truth"] if truth else []))
    for p in range(pairs):
        made += [Picture(f"{kind} {p}", kind, "", f"pair {p}", 0, "") for kind in kinds]
        for m in range(methods):
            made += [Picture(f"{m} {p} {s}", "result", f"m{m}", f"pair {p}", s, "") for s in range(seeds)]
    return made


def table(folder: Path, methods: tuple[str, ...] = ("qr-secretname", "lora-secretname"), pairs: int = 4) -> Path:
    """A CSV file of pictures of noise."""
    generator = np.random.default_rng(0)
    rows = []
    for p in range(pairs):
        for name in ("content", "style", *methods):
            pixels = generator.integers(0, 256, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name} {p}.png")
        rows += [(m, f"pair {p}", f"content {p}.png", f"style {p}.png", f"{m} {p}.png") for m in methods]
    path = folder / "mine.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("method", "pair", "content", "style", "picture"), *rows])
    return path


def folder(where: Path, pairs: int = 4, **told: Any) -> Path:
    """A whole study's folder: 2 methods. One that was asked for before is copied, under other random names."""
    key = json.dumps([pairs, told], sort_keys=True)
    if key not in MADE:
        place = Path(tempfile.mkdtemp(prefix="qrlora-study"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        make_study(table(place, pairs=pairs), place / "study", **{"raters": 4, "simulations": 2, **told})
        MADE[key] = place
    shutil.copytree(MADE[key], where, dirs_exist_ok=True)
    return renamed(where / "study")


MADE: dict[str, Path] = {}


def renamed(folder: Path) -> Path:
    """A study under other random names, and so another study."""
    before = read_plan(folder)
    text = (folder / TABLE).read_text()
    for path in sorted((folder / PICTURES).iterdir()):
        name = f"{secrets.token_hex(12)}.webp"
        text = text.replace(path.name, name)
        path.rename(path.with_name(name))
    (folder / TABLE).write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / PLAN).write_text(before.text.replace(before.pictures_sha256, digest))
    return folder


def answer(study: Study, token: str, better: str = "qr-secretname", seed: int = 0) -> None:
    """A rater who passes every check, and rates one method a level higher than the others."""
    generator = np.random.default_rng(seed)
    who = study.rater_of_token(token)
    assert who is not None
    for entry in study.sheets[who.sheet]:
        item = study.items[entry.item]
        known = {name: low if low else high for name, low, high in item.expected}
        value = {file: 2 + (study.pictures[file].method == better) for file in (item.left, item.right) if file}
        noise = int(generator.integers(-1, 2))
        free = value[item.left] + noise if item.form == "levels" else value[item.left] - value[item.right]
        values = {q.name: known.get(q.name, free) for q in study.plan.of(item.form)}
        study.record_answers(who, entry.item, values, now() - 3000)
