"""How the benches measure: ways to do one thing run in turn (A B A B), medians, ratios, one table and one JSON file.

from harness import arguments, compare, report      # a script in bench/ finds this file beside it

options = arguments(__doc__).parse_args()
row = compare("title", {"ours": f, "alternative": g}, rounds=5, goal="10x")
report("Titles", [row], options.folder)
"""

import argparse
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

FLOOR = "floor"
"""A way or a column: the least that this machine needs for the bytes and products that cannot be spared."""


@dataclass(frozen=True)
class Row:
    """What was measured of several ways to do one thing. The first way is ours."""

    name: str
    measured: Mapping[str, Sequence[float]]
    """{way: one number a round}, seconds unless `unit` says otherwise."""
    goals: Mapping[str, str] = field(default_factory=dict)
    """{alternative: goal}, see `compare`."""
    notes: Mapping[str, object] = field(default_factory=dict)
    """Further columns: a norm, a floor, a size."""
    unit: str = "s"
    extras: bool = False
    """Whether the numbers are differences from one base, which noise moves as a whole and may make negative."""

    @property
    def ours(self) -> str:
        """The name of the first way."""
        return next(iter(self.measured))

    def median(self, way: str) -> float:
        """Of all rounds."""
        return statistics.median(self.measured[way])

    def ratio(self, way: str) -> float:
        """How many times less than `way` ours takes: the median over rounds of way / ours, each pair measured side by
        side, so that a machine that slows down halfway moves it little. Of extras the medians' ratio: a round's own
        means nothing where its difference is near zero."""
        if self.extras:
            return self.median(way) / self.median(self.ours)
        pairs = zip(self.measured[way], self.measured[self.ours], strict=True)
        return statistics.median(theirs / mine for theirs, mine in pairs)

    def met(self, way: str) -> bool | None:
        """Whether the goal against `way` is met; None without a goal."""
        if way not in self.goals:
            return None
        at_most, factor = _goal(self.goals[way])
        ratio = self.ratio(way)  # of extras, noise may make it negative
        return 0 < 1 / ratio <= factor if at_most else ratio >= factor


def compare(
    name: str,
    ways: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    goal: str | Mapping[str, str] = "",
    warm: bool = True,
    measure: Callable[[Callable[[], object]], float] | None = None,
    unit: str = "s",
    **notes: object,
) -> Row:
    """Run every way once a round, in turn.

    Args:    ways {name: work}, ours first.
             goal: "10x": ours takes at most a tenth of the alternative's time; "<=1.5x": ours takes at most 1.5 times
             as long. A string is meant for the first alternative, a mapping {alternative: goal} for each.
             warm: whether each way runs once unmeasured before.
             measure: (work) -> a number, in `unit`; None: seconds, waiting for a GPU to be done.
    Raises:  ValueError: fewer than two ways, no rounds, a goal that is not of that form or for no alternative.
    """
    if len(ways) < 2 or rounds < 1:
        raise ValueError(f"a comparison needs two ways and a round, got {list(ways)} and rounds={rounds}")
    goals = dict(goal) if isinstance(goal, Mapping) else {list(ways)[1]: goal} if goal else {}
    for way, text in goals.items():
        if way not in list(ways)[1:]:
            raise ValueError(f"goal for {way!r}, the alternatives are {list(ways)[1:]}")
        _goal(text)
    return Row(name, laps(ways, rounds, warm, measure), goals, notes, unit)


def laps(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    warm: bool = True,
    measure: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, list[float]]:
    """{way: one number a round}; every way once a round, in turn. Arguments as `compare`."""
    if warm:
        for work in ways.values():
            work()
    measured: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            measured[way].append((measure or seconds)(work))
    return measured


def extra(
    name: str, measured: Mapping[str, Sequence[float]], base: str, goals: Mapping[str, str], unit: str = "s"
) -> Row:
    """What each way takes more than `base`, one of the ways of `laps`; ours first. A way FLOOR is what no way can do
    without."""
    more = {way: [a - b for a, b in zip(took, measured[base], strict=True)] for way, took in measured.items()}
    del more[base]
    floor = more.pop(FLOOR, None)
    alone = _number(statistics.median(measured[base]), unit)
    row = Row(name, more, goals, {"base alone": alone}, unit, extras=True)
    return row if floor is None else above(row, statistics.median(floor))


def above(row: Row, floor: float, what: str = "") -> Row:
    """The row with a column for the least that anything could take, and how many times that ours is.

    Args:    floor: in the row's unit.  what: it is made of.
    """
    text = _number(floor, row.unit) + (f", {what}" if what else "")
    times = f"{row.median(row.ours) / floor:.2g}" if floor > 0 else ""
    return replace(row, notes={**row.notes, FLOOR: text, "ours / floor": times})


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call; waits for a GPU to be done, before and after."""
    _settle()
    begun = time.perf_counter()
    work()
    _settle()
    return time.perf_counter() - begun


def report(title: str, rows: Sequence[Row], folder: str | os.PathLike = "out/bench") -> Path:
    """Print the rows as a Markdown table and write them, with the machine, to folder/<title>.json.

    Returns: the path of the JSON file.
    """
    print(f"\n### {title}\n\n{machine()['summary']}\n\n{table(rows)}", flush=True)
    path = Path(folder) / f"{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"title": title, "machine": machine(), "rows": [_plain(x) for x in rows]}, indent=1))
    return path


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: one line for each alternative of each row."""
    extra = list(dict.fromkeys(note for row in rows for note in row.notes))
    lines = [("what", "ours", "against", "takes", "ratio", "goal", "met", *extra)]
    lines.append(("---", *["---:"] * (len(lines[0]) - 1)))
    for row in rows:
        for way in list(row.measured)[1:]:
            met = {None: "", True: "yes", False: "no"}[row.met(way)]
            numbers = (_number(row.median(row.ours), row.unit), way, _number(row.median(way), row.unit))
            notes = (str(row.notes.get(note, "")) for note in extra)
            lines.append((row.name, *numbers, f"{row.ratio(way):.3g}x", row.goals.get(way, ""), met, *notes))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, object]:
    """What the numbers were measured on, and how busy it was."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        cpu = next((x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().split("\n") if "model name" in x), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads, load = torch.get_num_threads(), os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    facts = {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu, "threads": threads, "load": round(load, 2)}
    facts |= {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    hardware, software = f"{cpu}, {facts['cores']} cores, {gpu}", f"torch {torch.__version__}, {threads} threads"
    summary = f"{facts['date']}; {hardware}; {software}, load {load:.1f}"
    return {**facts, "summary": summary}


def arguments(about: str | None) -> argparse.ArgumentParser:
    """--device, --quick, --folder, --threads; a script adds its own."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument(
        "--device",
        default="cpu",
        help="cpu, or cuda for real sizes on a GPU; merging, files and starts are the CPU's work",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: shows that it runs, no claim")
    parser.add_argument("--folder", type=Path, default=Path("out/bench"), help="where the JSON goes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    return parser


def _goal(text: str) -> tuple[bool, float]:
    """(whether ours may take at most that many times as long, the factor). Raises ValueError."""
    found = re.fullmatch(r"(<=|>=)?\s*(\d+(?:\.\d+)?)x", text)
    if not found:
        raise ValueError(f"a goal reads '10x', '>=10x' or '<=1.5x', got {text!r}")
    return found[1] == "<=", float(found[2])


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _number(value: float, unit: str) -> str:
    return f"{value * 1000:.3g} ms" if unit == "s" and value < 1 else f"{value:.3g} {unit}"


def _plain(row: Row) -> dict[str, object]:
    ways = {
        way: {"median": row.median(way), "all": list(row.measured[way]), "ratio": row.ratio(way), "met": row.met(way)}
        for way in row.measured
    }
    notes = {name: value if isinstance(value, int | float | str) else str(value) for name, value in row.notes.items()}
    return {"name": row.name, "unit": row.unit, "goals": dict(row.goals), "ways": ways, "notes": notes}
