"""The search for a known word against trying every word on every noisy copy: processor time, and whether both agree.

    python bench/words.py --base tiny-sdxl --split test --contents 6 --styles 6

True images of held-out contents and styles; the words are those of the built-in base, on a CPU. Both agree on an image
if the word with the least loss is the same, and its ratio to the placeholder's loss. The goal: three times faster, and
agreed.
"""

import tempfile
import time
from pathlib import Path

import torch

from harness import Row, arguments, report
from qrlora.comparison.crossed_adapters import PLAIN, CrossedAdapters
from qrlora.comparison.crossed_settings import CrossedSettings
from qrlora.config import TRIGGERS
from qrlora.image_loading import load_image
from qrlora.known_words import COPIES, least_loss_word, search_words, word_losses
from qrlora.world.captions import caption, known_words
from qrlora.world.ground_truth import true_image

SEARCH, EVERY = "search", "every word on every copy"


def nearest(losses: dict[str, float], placeholder: str) -> tuple[str, float]:
    """The word with the least loss, and that loss in times the placeholder's."""
    word = least_loss_word(losses, placeholder)
    return word, losses[word] / losses[placeholder]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", default="tiny-flux")
    parser.add_argument("--split", choices=("test", "dev"), default="dev")
    parser.add_argument("--contents", type=int, default=1)
    parser.add_argument("--styles", type=int, default=1)
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = CrossedSettings(
            root=Path(folder), base=options.base, split=options.split, contents=options.contents, styles=options.styles
        )
        crossed = CrossedAdapters(settings)
        images = {
            "content": [(name, PLAIN, caption("{}", PLAIN)) for name in crossed.contents],
            "style": [(shown[0], style, caption(shown[0], "{}")) for style, shown in crossed.styles],
        }
        rows = [compare_searches(crossed, role, asked, Path(folder)) for role, asked in images.items()]
    report(f"Known words, {options.base}", rows, options.folder)


def compare_searches(crossed: CrossedAdapters, role: str, asked: list[tuple[str, str, str]], folder: Path) -> Row:
    """Both ways on true images, (content, style, prompt) each; prints the words."""
    placeholder, words, copies = TRIGGERS[role], known_words(role), COPIES[role]
    measured, agreed = {SEARCH: [], EVERY: []}, 0
    for content, style, prompt in asked:
        true_image(content, style).save(folder / "image.png")
        given = (crossed.base, load_image(folder / "image.png", 128), prompt)
        start = time.process_time()
        searched = nearest(search_words(*given, placeholder, words, copies), placeholder)
        between = time.process_time()
        every = nearest(word_losses(*given, [placeholder, *words], copies), placeholder)
        measured[SEARCH].append(between - start)
        measured[EVERY].append(time.process_time() - between)
        agreed += searched[0] == every[0] and abs(searched[1] / every[1] - 1) < 1e-3
        print(f"{content}, {style}: {searched[0]} {searched[1]:.3f}, of all {every[0]} {every[1]:.3f}", flush=True)
    return Row(f"word for a {role}", measured, {EVERY: "3x"}, {"agreed": f"{agreed} of {len(asked)}"})


if __name__ == "__main__":
    main()
