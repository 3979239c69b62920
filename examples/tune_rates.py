"""A method's learning rates for content and style, on the development split: every pair of rates, three by three.

python examples/tune_rates.py --base tiny-flux --method lora --rates 0.0007,0.002,0.006 --workers 2
"""

import argparse
from itertools import product
from pathlib import Path

from qrlora.comparison import summary_tables
from qrlora.comparison.fusion_comparison import plan_comparison, run_comparison
from qrlora.comparison.settings import ComparisonSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="tiny-flux")
    parser.add_argument("--method", default="qr", help="a row of qrlora.baselines.FUSIONS, or peft:KIND")
    parser.add_argument("--rates", default="0.001,0.003,0.01")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="updates of each adapter; the base's own where it is not given")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("out/rates"), help="folder; results in it are reused")
    wanted = parser.parse_args()

    rates = wanted.rates.split(",")
    specs = {
        (content, style): f"{wanted.method}:content/learning_rate={content}:style/learning_rate={style}"
        for content, style in product(rates, rates)
    }
    counts = {"pairs": wanted.pairs, "seeds": wanted.seeds, "steps": wanted.steps}
    settings = ComparisonSettings(base=wanted.base, methods=tuple(specs.values()), split="dev", **counts)
    summary = run_comparison(plan_comparison(settings), wanted.output, wanted.workers)
    table = summary_tables.summarise(summary).table
    both = {row["method"]: row["value"] for row in table if row["score"] == "both"}
    likeness = {row["method"]: row["value"] for row in table if row["score"] == "style_likeness"}

    print(f"{summary.counts}; both correct in hundredths (likeness to the style), {wanted.method} on {wanted.base}")
    print("content \\ style", *(f"{style:>10}" for style in rates))
    for content in rates:
        cells = (f"{100 * both[specs[content, x]]:.0f} ({100 * likeness[specs[content, x]]:.0f})" for x in rates)
        print(f"{content:>15}", *(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    main()
