"""Contents and style images crossed: each adapter is trained once, and every content is drawn in every style.

    python bench/crossed_fusion.py --base tiny-flux --methods qr,lora --content-word auto --style-word auto

Results go to FOLDER/BASE-SPLIT-CONTENTSxSTYLES, of other --known than 6 to one of their own; what is there is not made
again, so that further calls, with another --seed or with --style-images, add their rows.  Prints the tables of all that
is there; --table does nothing else.
See `qrlora.comparison.crossed_fusion`; `qrlora reproduce crossed` makes the findings' whole table.
"""

from pathlib import Path

import torch

from harness import arguments
from qrlora.comparison.crossed_adapters import check_methods
from qrlora.comparison.crossed_fusion import CrossedFusion
from qrlora.comparison.crossed_settings import CrossedSettings
from qrlora.comparison.crossed_tables import markdown_tables, scored_methods
from qrlora.comparison.row_file import read_rows

COUNTS = {
    "contents": "contents",
    "styles": "style images",
    "style-images": "images that one style is trained on",
    "images": "images of each sum",
    "known": "known words that each adapter is drawn with",
    "seed": "of training",
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", default=CrossedSettings.base)
    parser.add_argument("--methods", default="qr,lora", help="as of qrlora compare, and oracle")
    parser.add_argument("--split", choices=("test", "dev"), default=CrossedSettings.split)
    for name, meaning in COUNTS.items():
        parser.add_argument(
            f"--{name}", type=int, default=getattr(CrossedSettings, name.replace("-", "_")), help=meaning
        )
    for role in ("content", "style"):
        default = getattr(CrossedSettings, f"{role}_word")
        parser.add_argument(f"--{role}-word", default=default, help="in prompts; auto, nearest: one it knows")
    parser.add_argument("--content-filters", action="store_true", help="contents learnt from filtered copies, too")
    parser.add_argument(
        "--content-strength", type=float, default=1.0, help="in sums; other than 1: they alone are drawn"
    )
    parser.add_argument(
        "--truth", choices=("exact", "by name"), default=CrossedSettings.truth, help="by name: the styles are hands"
    )
    parser.add_argument("--equal", choices=("rank", "parameters"), default=CrossedSettings.equal, help="to qr's")
    parser.add_argument("--forgetting", action="store_true", help="draw also what asks for no adapter")
    parser.set_defaults(folder=Path("out/crossed"), threads=1)
    parser.add_argument("--table", action="store_true", help="only print the tables")
    parser.add_argument("--against", default="", help="the method that the others' differences are to; the first")
    options = vars(parser.parse_args())
    methods, table, against, quick, threads = map(options.pop, ("methods", "table", "against", "quick", "threads"))
    if quick:
        options |= {"contents": 1, "styles": 1, "known": 1}
    settings = CrossedSettings(root=options.pop("folder"), **options)
    if not table:
        torch.set_num_threads(threads)
        crossed = CrossedFusion(settings)
        check_methods(settings, methods.split(","))
        for spec in methods.split(","):
            crossed.run(spec)
    print("\n".join(markdown_tables(scored_methods(read_rows(settings.folder / "rows.csv"), against))))


if __name__ == "__main__":
    main()
