"""The reading test: can a stranger tell from a function's first lines in which file it stands?

    python tests/reading_test.py --seed 3 > questions.txt            the names of all files and 50 functions
    python tests/reading_test.py --seed 3 --guesses guesses.txt      how many guesses are right

A reader who has never seen the code gets the questions and nothing else, and writes a line for each: its number,
the file that it takes the function to be from, and a second guess: "7 merging/sum_and_stack.py analysis.py".
"""

import argparse
import ast
import random
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "qrlora"
LINES = 12
"""Of each function, that a reader sees."""
SHORTEST = 5
"""Lines that a function must have to say anything."""


def functions(path: Path) -> Iterator[str]:
    """The first lines of each function and method of a file, without their indentation."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(x.lineno for x in node.decorator_list)])
            if (node.end_lineno or 0) - node.lineno + 1 >= SHORTEST:
                shown = lines[first - 1 : min(node.end_lineno or 0, first - 1 + LINES)]
                indent = len(shown[0]) - len(shown[0].lstrip())
                yield "\n".join(line[indent:] for line in shown)


def drawn(count: int, seed: int) -> list[tuple[str, str]]:
    """(file, first lines) of so many functions, at random."""
    files = sorted(path for path in SRC.rglob("*.py") if "versions" not in path.parts)
    every = [(path.relative_to(SRC).as_posix(), text) for path in files for text in functions(path)]
    return random.Random(seed).sample(every, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--guesses", type=Path, help="a reader's guesses, to be counted")
    wanted = parser.parse_args()
    questions = drawn(wanted.count, wanted.seed)
    if wanted.guesses is None:
        print("Files:", *sorted(path.relative_to(SRC).as_posix() for path in SRC.rglob("*.py")), sep="\n  ")
        for number, (_, text) in enumerate(questions, 1):
            print(f"\n--- {number} ---\n{text}")
        return
    guesses = {words[0]: words[1:3] for line in wanted.guesses.read_text().splitlines() if (words := line.split())}
    places = [guesses.get(str(number), []) for number in range(1, len(questions) + 1)]
    first = sum(guess[:1] == [file] for guess, (file, _) in zip(places, questions, strict=True))
    either = sum(file in guess for guess, (file, _) in zip(places, questions, strict=True))
    for number, (guess, (file, _)) in enumerate(zip(places, questions, strict=True), 1):
        if guess[:1] != [file]:
            print(f"{number}: {file}, guessed {' or '.join(guess) or 'nothing'}")
    print(f"{first} of {len(questions)} at the first guess, {either} in two")


if __name__ == "__main__":
    main()
