"""Inputs that were changed at random, and what qrlora makes of each: a result, or one line.

`python tests/mutations.py --count 2000 --seed 0` tries so many and prints a table; the suite tries a small share.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import profiles
from qrlora import compat, files
from qrlora.adapter import Adapter, Header, Pair
from qrlora.cli.adapter_tables import file_facts, parent_rows
from qrlora.comparison.image_pairs import pairs_from_csv
from qrlora.config import read_recipe
from qrlora.image_loading import load_image
from qrlora.merging import merge
from qrlora.safetensors_files import read_safetensors, write_safetensors

SECONDS = 60
"""After so long an input hangs: a file of these sizes takes well under one."""
KINDS = ("safetensors", "JSON", "pipeline JSON", "TOML", "CSV", "picture")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**63, -(2**70), 0.5, float("nan"), float("inf"), "", "null", "x" * 300, "\ud800",
    "../../x", "\x1b[2J", [], [[]], [0, "a"], {}, {"a": {}}, {"role": 5}, "(a+)+$", "(", ["pissa"],
)  # fmt: skip
"""What is put in the place of a value in JSON."""
_SDXL, _DOUBLE, _SINGLE = (
    "mid_block.attentions.0.transformer_blocks",
    "transformer_blocks.3",
    "single_transformer_blocks.7",
)
LAYERS = {
    "sdxl": [f"{_SDXL}.{block}.attn1.{name}" for block in (0, 1) for name in ("to_q", "to_k", "to_v", "to_out.0")],
    "flux": [
        *(f"{_DOUBLE}.attn.{name}" for name in ("to_q", "to_k", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0")),
        *(f"{_SINGLE}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    ],
}
"""Layers of the adapters that are changed."""


def bytes_changed(data: bytes, chance: random.Random) -> bytes:
    """Some bytes flipped, cut out, doubled, or all that follows cut off."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 30))):
        at, many = chance.randrange(len(found) + 1), chance.choice((1, 1, 4, 50))
        way = chance.randrange(4)
        if way == 0:
            found[at : at + many] = chance.randbytes(len(found[at : at + many]))
        elif way == 1:
            del found[at : at + many]
        elif way == 2:
            found[at:at] = found[at : at + many]
        elif chance.random() < 0.3:
            del found[at:]
    return bytes(found)


def json_changed(values: Any, chance: random.Random) -> Any:
    """A copy in which one value, anywhere, is another, gone, or under another name."""
    whole = [copy.deepcopy(values)]
    places: list[tuple[Any, Any]] = [(whole, 0)]
    for holder, key in places:
        inside = holder[key]
        keys = list(inside) if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
        places += [(inside, x) for x in keys]
    holder, key = chance.choice(places)
    way = chance.random()
    if way < 0.75 or isinstance(holder, list):
        holder[key] = copy.deepcopy(chance.choice(VALUES))
    elif way < 0.9:
        del holder[key]
    else:
        holder[chance.choice(("", "x", "weight", "init_lora_weights", "\x00"))] = holder.pop(key)
    return whole[0]


def safetensors_changed(data: bytes, chance: random.Random) -> bytes:
    """The header changed as JSON, JSON within its metadata changed, numbers made NaN or infinite, or bytes changed."""
    length = int.from_bytes(data[:8], "little")
    header, body, way = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :]), chance.random()
    if way < 0.2:
        return bytes_changed(data, chance)
    if way < 0.35:
        for _ in range(4):
            at = 4 * chance.randrange(len(body) // 4)
            body[at : at + 4] = chance.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"\xff\xff\x7f\x7f"))
    elif way < 0.7 and "__metadata__" in header:
        told = header["__metadata__"]
        nested = [key for key, text in told.items() if text[:1] in "{["]
        if nested:
            key = chance.choice(nested)
            told[key] = json.dumps(json_changed(json.loads(told[key]), chance))
            told[key] = (
                told[key] if chance.random() < 0.9 else bytes_changed(told[key].encode(), chance).decode("latin1")
            )
    elif way < 0.85:
        names = [name for name in header if name != "__metadata__"]
        first, second = chance.choice(names), chance.choice(names)
        header[first], header[second] = header[second], header[first]
        if chance.random() < 0.5:
            header[chance.choice(("x.alpha", "lora_unet_x.alpha", f"{first}.alpha", "\x1b"))] = header.pop(first)
    else:
        header = json_changed(header, chance)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body)


def adapter_of(family: str) -> Adapter:
    """A small adapter of random numbers in layers that the family has."""
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for layer in LAYERS[family]:
        o = 32 if layer.endswith("proj_mlp") else 8
        pairs[layer] = Pair(torch.randn(2, 8, generator=generator), torch.randn(o, 2, generator=generator))
    part = "unet" if family == "sdxl" else "transformer"
    header = Header(family=family, component=part, rank=2, role="style", trigger="<s>", config={"steps": 3})
    return Adapter(pairs, header)


def seeds(folder: Path) -> dict[str, Callable[[Path, random.Random], Callable[[], Any]]]:
    """{kind: (where to put it, chance) -> what is to be done with a changed input}."""
    adapters = {family: adapter_of(family) for family in LAYERS}
    for family in LAYERS:
        for keys in ("kohya", "diffusers"):
            files.save(adapters[family], folder / f"{family}-{keys}.safetensors", keys=keys)
    files.save(merge([adapters["sdxl"]] * 2, [0.5, 1], "stack"), folder / "merged.safetensors")
    frozen = {name: Pair(torch.linalg.qr(x.A.T).Q.T.contiguous(), x.B) for name, x in adapters["sdxl"].layers.items()}
    compact = Adapter(frozen, replace(adapters["sdxl"].header, method="qr"))
    files.save(compact, folder / "compact.safetensors", content="compact")
    tensors = {
        k.replace("unet.", "base_model.model."): x
        for k, x in read_safetensors(folder / "sdxl-diffusers.safetensors")[0].items()
    }
    peft = folder / "peft"
    peft.mkdir()
    write_safetensors(peft / "adapter_model.safetensors", tensors, {})
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 2}, "rank_pattern": {},
            "init_lora_weights": True, "use_rslora": False, "use_dora": False, "target_modules": ["to_q"]}  # fmt: skip
    loras = sorted(folder.glob("*.safetensors"))

    def lora(place: Path, chance: random.Random) -> Callable[[], Any]:
        path = place / "x.safetensors"
        path.write_bytes(safetensors_changed(chance.choice(loras).read_bytes(), chance))
        return lambda: used(path)

    def beside(place: Path, chance: random.Random) -> Callable[[], Any]:
        (place / "adapter_model.safetensors").write_bytes((peft / "adapter_model.safetensors").read_bytes())
        text = json.dumps(json_changed(told, chance)).encode()
        (place / "adapter_config.json").write_bytes(text if chance.random() < 0.7 else bytes_changed(text, chance))
        return lambda: used(place)

    return {
        "safetensors": lora,
        "JSON": beside,
        "pipeline JSON": pipeline,
        "TOML": recipe,
        "CSV": table,
        "picture": picture,
    }


def used(path: Path) -> Any:
    """Read, check, inspect and convert, as the commands do; what is read is finite, and so is what is written."""
    results = []
    for tool in compat.TOOLS:
        with refusals(results):
            results.append([str(x) for x in compat.check(path, tool)])
    adapter = files.load(path, skip_text_encoders=True)
    found = files.load_adapter.file_in(path)
    file_facts(found, adapter), parent_rows(adapter.header.parents)
    out = found.with_name("out.safetensors")
    files.save(adapter, out)
    again = files.load(out)
    assert all(torch.isfinite(x.A).all() and torch.isfinite(x.B).all() for x in again.layers.values())
    return results


def pipeline(place: Path, chance: random.Random) -> Callable[[], Any]:
    """A base whose configs have changed: its shapes are counted; one in four is opened."""
    sys.path.append(str(Path(__file__).parents[1] / "testing"))
    import pico
    from qrlora.families import open_base
    from qrlora.families.base_without_weights import blank_base

    base = place / "base"
    shutil.copytree(pico.folder(chance.choice(("sdxl", "sd3", "flux"))), base)
    file = chance.choice(sorted(x for x in base.rglob("*.json") if x.name not in ("tokenizer.json", "vocab.json")))
    text = json.dumps(json_changed(json.loads(file.read_text()), chance)).encode()
    file.write_bytes(text if chance.random() < 0.8 else bytes_changed(text, chance))
    opened = chance.random() < 0.25
    return lambda: open_base(base, "cpu") if opened else blank_base(str(base))


def recipe(place: Path, chance: random.Random) -> Callable[[], Any]:
    kept = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
    path = place / "x.toml"
    data = bytes_changed(chance.choice(kept).read_bytes(), chance)
    extra = chance.choice(
        ("", "\nsteps = nan", "\nrank = [[[]]]", "\nimage = {a = 1}", "\nseed = 1979-05-27", "\nx = " + "[" * 3000)
    )
    path.write_bytes(data + extra.encode())
    return lambda: read_recipe(path)


def table(place: Path, chance: random.Random) -> Callable[[], Any]:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16), "red").save(place / name)
    text = b'content,style,style_shows\na.png,b.png,cat\n"a.png",b.png,"a, b"\n'
    (place / "x.csv").write_bytes(bytes_changed(text, chance))
    return lambda: pairs_from_csv(place / "x.csv")


def picture(place: Path, chance: random.Random) -> Callable[[], Any]:
    kind = chance.choice(("png", "jpg", "webp", "gif", "tiff", "bmp"))
    mode = chance.choice(
        {"png": ("RGB", "RGBA", "P", "I;16", "LA"), "tiff": ("RGB", "CMYK", "F", "LAB")}.get(kind, ("RGB", "L"))
    )
    noise = Image.frombytes("RGB", (40, 30), chance.randbytes(3600))
    image = Image.new("I;16", (40, 30), 777) if mode == "I;16" else noise if mode == "LAB" else noise.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = chance.randrange(10)
    told = {"exif": exif} if kind in ("png", "jpg", "webp") else {}
    if kind != "bmp" and kind != "gif" and mode == "RGB":
        told["icc_profile"] = profiles.rgb("display-p3")
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "jpeg"}.get(kind, kind), **told)
    (place / f"x.{kind}").write_bytes(bytes_changed(buffer.getvalue(), chance))
    return lambda: load_image(place / f"x.{kind}", 32)


@contextlib.contextmanager
def refusals(into: list[Any]) -> Iterator[None]:
    """One line for people is an answer, too."""
    try:
        yield
    except (ValueError, OSError) as error:
        line = str(error)
        if not line.strip() or "\n" in line.strip():
            raise RuntimeError(f"a refusal of {len(line.splitlines())} lines: {line[:200]!r}") from error
        into.append(line)


def outcome(work: Callable[[], Any]) -> tuple[str, str]:
    """("accepted", "refused", "traceback" or "hang", what was said)."""

    def late(*_: Any) -> None:
        raise KeyboardInterrupt

    said: list[Any] = []
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with refusals(said), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            work()
    except KeyboardInterrupt:
        return "hang", ""
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", f"{type(error).__name__}: {error!s:.300} ({Path(where.filename).name}:{where.lineno})"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return ("refused", said[0]) if said else ("accepted", "")


def tried(count: int, seed: int, kinds: str = "") -> list[tuple[str, int, str, str]]:
    """(kind, number, outcome, what was said) of so many changed inputs, the kinds in turn."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as holder:
        os.environ["QRLORA_CACHE"] = str(Path(holder) / "cache")
        (Path(holder) / "seeds").mkdir()
        makers = seeds(Path(holder) / "seeds")
        names = [x for x in makers if not kinds or x in kinds.split(",")]
        for number in range(count):
            place = Path(holder) / str(number)
            place.mkdir()
            kind = names[number % len(names)]
            work = makers[kind](place, random.Random(f"{seed} {number}"))
            rows.append((kind, number, *outcome(work)))
            shutil.rmtree(place)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="")
    told = parser.parse_args()
    rows = tried(told.count, told.seed, told.kinds)
    table = collections.Counter((kind, state) for kind, _, state, _ in rows)
    states = ("accepted", "refused", "traceback", "hang")
    print(f"{'':16}" + "".join(f"{state:>11}" for state in states))
    for kind in dict.fromkeys(row[0] for row in rows):
        print(f"{kind:16}" + "".join(f"{table[kind, state]:11}" for state in states))
    bad = [row for row in rows if row[2] in ("traceback", "hang")]
    for row in bad[:40]:
        print(*row)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
