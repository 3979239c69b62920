"""Items and sheets: which pictures each rater sees, in which order, on which side. Made before anybody rates.

Every sheet shows each method equally often and each two methods equally often, sides changed half of the time; over the
sheets the inputs take turns. No input comes twice in a row, and a method's name decides nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

from .plan import FORMS, LEVELS, Picture, Plan

ROLES = ("rating", "check", "repeat", "practice")
GOOD, BAD = (LEVELS // 2, LEVELS - 1), (0, LEVELS // 3 - 1)
"""What levels a check accepts for what is right, and for what is not: 3 to 5, 0 to 1."""
TRIES = 8
"""Random orders, of which the one is taken that has what comes twice farthest apart."""
WON = 1
"""A comparison's answer: 1 the first of the item, -1 the second, 0 neither."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Item:
    """One picture to rate, or two to compare, under the pictures of its input."""

    form: str
    role: str
    pair: str
    left: str
    """File of the picture; of the first of two."""
    right: str = ""
    content: str = ""
    style: str = ""
    expected: tuple[tuple[str, int, int], ...] = ()
    """Of a check: (question, lowest, highest value that passes)."""


@dataclass(frozen=True)
class Entry:
    """An item at its place in a sheet."""

    item: int
    flipped: bool = False
    """Whether the second picture stands on the left."""


@dataclass(frozen=True)
class StudyItems:
    """Every item of a study, and where to find it."""

    items: tuple[Item, ...]
    results: dict[tuple[str, str, int], int]
    """{(method, pair, seed): item of levels}."""
    duels: dict[tuple[str, str, str, int], int]
    """{(first method, second method, pair, seed): item of pairs}."""
    known: dict[tuple[str, str], tuple[tuple[int, ...], ...]]
    """{(form, role): for each kind of known answer its items}, of checks and of practice."""
    again: dict[int, int]
    """{item: the item that repeats it}."""
    seeds: dict[str, tuple[int, ...]]
    """{pair: seeds of which every method has a picture}."""


def make_items(plan: Plan, pictures: Sequence[Picture]) -> StudyItems:
    """All items that the raters' sheets are made of. Raises: ValueError: a method lacks a picture, a pair lacks its
    input; under 3 pairs."""
    by = {(x.kind, x.method, x.pair, x.seed): x.file for x in pictures}
    inputs = {kind: {x.pair: x.file for x in pictures if x.kind == kind} for kind in ("content", "style", "truth")}
    noise = next((x.file for x in pictures if x.kind == "noise"), "")
    pairs = list(dict.fromkeys(x.pair for x in pictures if x.kind == "result"))
    if len(pairs) < 3:
        raise ValueError(f"a study needs 3 inputs or more, so that none comes twice in a row; got {len(pairs)}")
    items: list[Item] = []
    results, duels, again = {}, {}, {}
    seeds = {}
    for pair in pairs:
        if lacking := [kind for kind in ("content", "style") if pair not in inputs[kind]]:
            raise ValueError(f"{pair!r} has no {lacking[0]} picture")
        told: dict[str, Any] = {"pair": pair, "content": inputs["content"][pair], "style": inputs["style"][pair]}
        of_method = {
            m: {s for kind, method, p, s in by if (kind, method, p) == ("result", m, pair)} for m in plan.methods
        }
        seeds[pair] = tuple(sorted(set.intersection(*of_method.values())))
        if not seeds[pair]:
            raise ValueError(f"{pair!r} has no seed of which each of {', '.join(plan.methods)} has a picture")
        for seed in seeds[pair]:
            for method in plan.methods:
                results[method, pair, seed] = len(items)
                items.append(Item("levels", "rating", left=by["result", method, pair, seed], **told))
            for one, two in combinations(plan.methods, 2):
                duels[one, two, pair, seed] = len(items)
                sides = {"left": by["result", one, pair, seed], "right": by["result", two, pair, seed]}
                items.append(Item("pairs", "rating", **sides, **told))
    for k in range(len(items)):
        again[k] = len(items)
        items.append(Item(**{**vars(items[k]), "role": "repeat"}))
    known: dict[tuple[str, str], tuple[tuple[int, ...], ...]] = {}
    best = inputs["truth"] or inputs["content"]  # where nobody knows the truth, the content itself keeps the content
    for form in plan.forms:
        made = [_check_items(plan, form, pair, pairs[k - 1], inputs, best, noise) for k, pair in enumerate(pairs)]
        for role in ("check", "practice"):
            kinds: list[tuple[int, ...]] = []
            for kind in zip(*made, strict=True):
                kinds.append(tuple(range(len(items), len(items) + len(kind))))
                items += [Item(**{**vars(x), "role": role}) for x in kind]
            known[form, role] = tuple(kinds)
    return StudyItems(tuple(items), results, duels, known, again, seeds)


def _check_items(
    plan: Plan, form: str, pair: str, other: str, inputs: dict[str, dict[str, str]], best: dict[str, str], noise: str
) -> list[Item]:
    """Items of the sheets whose answer is known: what is right, noise, and another input's picture.

    What a question asks is told by its name: "style" is the style's alone, about which a picture of another content in
    the same style would be right; any other asks for the content, too.
    """
    told: dict[str, Any] = {"form": form, "role": "check", "pair": pair}
    told |= {"content": inputs["content"][pair], "style": inputs["style"][pair]}
    true = bool(inputs["truth"])
    names = [q.name for q in plan.of(form)]
    about_content = [name for name in names if name != "style"]
    if form == "levels":
        right = [name for name in names if true or name == "content"]
        kept = [Item(**told, left=best[pair], expected=tuple((n, *GOOD) for n in right))] if right else []
        return [Item(**told, left=noise, expected=tuple((n, *BAD) for n in names)), *kept]
    wins = tuple((n, WON, WON) for n in names)
    wrong = [Item(**told, left=best[pair], right=best[other], expected=tuple((n, WON, WON) for n in about_content))]
    return [Item(**told, left=best[pair], right=noise, expected=wins), *(wrong if about_content else [])]


def make_sheets(plan: Plan, stuff: StudyItems, count: int | None = None) -> list[list[Entry]]:
    """The raters' sheets: practice, then levels and pairs, or pairs and levels, in turn.

    Raises: ValueError: more inputs or comparisons than there are; no order without an input twice in a row.
    """
    rng = np.random.default_rng(plan.seed)
    used: dict[str, Counter] = defaultdict(Counter)
    if plan.inputs > len(stuff.seeds):
        raise ValueError(f"inputs = {plan.inputs}, but there are {len(stuff.seeds)} of them")
    duels = list(combinations(plan.methods, 2))
    if plan.comparisons and (not duels or plan.comparisons % len(duels)):
        raise ValueError(
            f"comparisons = {plan.comparisons}: {len(plan.methods)} methods make {len(duels)} pairs, which come "
            f"equally often if comparisons is a multiple of {len(duels) or 'at least one pair, so of two methods'}"
        )
    if duels and plan.comparisons > len(duels) * len(stuff.seeds):
        raise ValueError(f"comparisons = {plan.comparisons}, but there are {len(duels) * len(stuff.seeds)} of them")
    sheets = []
    for number in range(plan.sheets if count is None else count):
        blocks = {
            "levels": lambda: _level_block(plan, stuff, rng, used),
            "pairs": lambda n=number: _pair_block(plan, stuff, rng, used, duels, n),
        }
        order = [form for form in (FORMS if number % 2 else FORMS[::-1]) if form in plan.forms]
        sheet, last = [], ""
        for form in order:
            kinds = stuff.known[form, "practice"]
            others = tuple(k for k in kinds[number % len(kinds)] if stuff.items[k].pair != last)
            item = _least_used_one(rng, used[f"practice {form}"], others)
            sheet.append(Entry(item, form == "pairs" and bool(rng.integers(2))))
            last = stuff.items[sheet[-1].item].pair
        for form in order:
            sheet += _shuffled_with_checks(plan, stuff, rng, used, form, blocks[form](), number, last)
            last = stuff.items[sheet[-1].item].pair
        sheets.append(sheet)
    return sheets


def _level_block(plan: Plan, stuff: StudyItems, rng: np.random.Generator, used: dict[str, Counter]) -> list[Entry]:
    """The level ratings of a sheet: every method's image of the inputs whose turn it is."""
    entries = []
    for pair in _least_used(rng, used["inputs"], tuple(stuff.seeds), plan.inputs):
        seed = _least_used_one(rng, used[f"seed {pair}"], stuff.seeds[pair])
        entries += [Entry(stuff.results[method, pair, seed]) for method in plan.methods]
    return entries


def _pair_block(
    plan: Plan,
    stuff: StudyItems,
    rng: np.random.Generator,
    used: dict[str, Counter],
    duels: Sequence[tuple[str, str]],
    number: int,
) -> list[Entry]:
    """The paired comparisons of a sheet: every two methods equally often, on inputs in turn; sides alternate."""
    rounds, inputs = plan.comparisons // len(duels), tuple(stuff.seeds)
    entries, here = [], Counter()
    met: dict[tuple[str, str], set[str]] = defaultdict(set)
    for turn in range(rounds):
        for k, duel in enumerate(duels):
            left = [x for x in inputs if x not in met[duel]]
            fewest = min(here[x] for x in left)
            pair = _least_used_one(rng, used[f"inputs of {duel}"], [x for x in left if here[x] == fewest])
            here[pair] += 1
            met[duel].add(pair)
            seed = _least_used_one(rng, used[f"seed of {duel} {pair}"], stuff.seeds[pair])
            entries.append(Entry(stuff.duels[*duel, pair, seed], bool((turn + k + number * rounds) % 2)))
    return entries


def _shuffled_with_checks(
    plan: Plan,
    stuff: StudyItems,
    rng: np.random.Generator,
    used: dict[str, Counter],
    form: str,
    entries: list[Entry],
    number: int,
    last: str,
) -> list[Entry]:
    """A sheet's block in random order, with its checks and repeated items, well apart and with the sides changed."""

    def pair_of(entry: Entry) -> str:
        return stuff.items[entry.item].pair

    def rarest(here: Counter, among: Sequence[Entry]) -> tuple[Entry, ...]:
        fewest = min((here[pair_of(x)] for x in among), default=0)
        return tuple(x for x in among if here[pair_of(x)] == fewest)

    here = Counter(map(pair_of, entries))
    kinds = stuff.known[form, "check"]
    for k in range(plan.checks):
        taken = {x.item for x in entries}
        among = rarest(here, [Entry(x) for x in kinds[(number + k) % len(kinds)] if x not in taken])
        if not among:
            raise ValueError(f"checks = {plan.checks}, but there are not so many of the form {form!r}")
        check = _least_used_one(rng, used[f"checks {form}"], among)
        here[pair_of(check)] += 1
        entries = [*entries, Entry(check.item, form == "pairs" and bool(rng.integers(2)))]
    once = [x for x in entries if stuff.items[x.item].role == "rating"]
    second: dict[Entry, Entry] = {}
    for _ in range(min(plan.repeats, len(once))):
        first = _least_used_one(rng, Counter(), rarest(here, once))
        once.remove(first)
        here[pair_of(first)] += 1
        second[first] = Entry(stuff.again[first.item], form == "pairs" and not first.flipped)
    orders = [random_sheet_order(rng, [*entries, *second.values()], pair_of, last) for _ in range(TRIES)]
    return _repeats_after_first(max(orders, key=lambda order: _gap(order, second)), second)


def _gap(order: list[Entry], second: dict[Entry, Entry]) -> int:
    """How far the nearest two are apart of what comes twice."""
    return min((abs(order.index(one) - order.index(two)) for one, two in second.items()), default=0)


def _repeats_after_first(order: list[Entry], second: dict[Entry, Entry]) -> list[Entry]:
    """A sheet's order in which a repeated item comes after what it repeats."""
    order = list(order)
    for one, two in second.items():
        i, j = sorted((order.index(one), order.index(two)))
        order[i], order[j] = one, two
    return order


def random_sheet_order(
    rng: np.random.Generator, entries: Sequence[Entry], pair_of: Callable[[Entry], str], last: str = ""
) -> list[Entry]:
    """A random order of a sheet's entries in which no pair follows itself, nor comes first after `last`.

    Raises: ValueError: there is none.
    """
    left = [entries[k] for k in rng.permutation(len(entries))]
    order: list[Entry] = []
    while left:
        counts = Counter(map(pair_of, left))
        name, most = counts.most_common(1)[0]
        must = 2 * most > len(left)  # it has to come now and every second time
        nxt = next((x for x in left if pair_of(x) != last and (not must or pair_of(x) == name)), None)
        nxt = nxt or next((x for x in left if pair_of(x) != last), None)
        if nxt is None:
            raise ValueError(
                f"no order of a sheet without {last!r} twice in a row: it needs more inputs, or fewer repeats"
            )
        left.remove(nxt)
        order.append(nxt)
        last = pair_of(nxt)
    return order


def _least_used(rng: np.random.Generator, used: Counter, among: Sequence[Key], count: int) -> list[Key]:
    """The inputs or images that the sheets have used least so far, which counts them."""
    order = sorted((used[x], float(rng.random()), k) for k, x in enumerate(among))
    chosen = [among[k] for *_, k in order[:count]]
    used.update(chosen)
    return chosen


def _least_used_one(rng: np.random.Generator, used: Counter, among: Sequence[Key]) -> Key:
    return _least_used(rng, used, among, 1)[0]
