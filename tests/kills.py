"""Kill commands at random moments and give them again: python tests/kills.py --kills 100.

Each of train, merge, convert and project is started on a pico base in a folder of its own, with its cache in it, and
gets SIGKILL after a random part of the time that it takes, every other time when next a temporary file is seen.
Then the same command is given again, to its end. It must write the bytes of a run that nobody killed, and nothing else
may be in the folder. Processes are forks of this one, so that what is killed is work and not the import of libraries.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")  # a fork has one thread

from PIL import Image

import qrlora.training  # noqa: F401  # loaded once, not in every fork
from qrlora import cli
from qrlora.families import open_base

sys.path.append(str(Path(__file__).parents[1] / "testing"))
import pico  # noqa: E402

COMMANDS = {
    "train": "train {base} image=dog.png output=out.safetensors device=cpu rank=4 steps=12 save_every=1",
    "merge": "merge dog.safetensors cat.safetensors=0.5 -o out.safetensors --rule stack",
    "convert": "convert dog.safetensors out.safetensors --content compact",
    "project": "project cat.safetensors out.safetensors --base {folder} --rank 4",
}
INPUTS = ("dog.png", "dog.safetensors", "cat.safetensors")


def started(words: list[str], folder: Path) -> int:
    """The process number of a command that works in a folder."""
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    os.environ["QRLORA_CACHE"] = str(folder / "cache")
    with open(folder.with_suffix(".log"), "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        code = 1
        try:
            cli.main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:  # the fork must never go on as its parent
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def ended(child: int) -> int:
    """Its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(folder: Path) -> dict[str, bytes]:
    """{path inside: content} of the files in a folder, those of the cache included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def partials(folder: Path) -> list[Path]:
    """Temporary files in a folder."""
    with contextlib.suppress(FileNotFoundError):  # one may go while it is looked for
        return list(folder.rglob(".*.partial"))
    return []


def killed(words: list[str], folder: Path, seconds: float, at_writing: bool) -> str:
    """Start a command and kill it. Returns how far it had come: see the last lines."""
    child = started(words, folder)
    time.sleep(seconds)
    while at_writing and not partials(folder) and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0)
    os.kill(child, signal.SIGKILL)
    ended(child)
    if partials(folder):
        return "a temporary file"
    if (folder / "out.safetensors").exists():
        return "done"
    return "a checkpoint" if (folder / "out.checkpoint").exists() else "nothing written"


def fresh(home: Path, name: str) -> Path:
    """A folder with the inputs alone."""
    folder = home / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for each in INPUTS:
        shutil.copy(home / each, folder)
    return folder


def prepared(home: Path) -> dict[str, list[str]]:
    """The commands as words, their inputs made in the folder."""
    base = pico.folder()
    open_base(base, "cpu")  # what it loads need not be loaded in every fork
    for name in ("dog", "cat"):
        Image.effect_noise((20, 20), 60).convert("RGB").save(home / f"{name}.png")
        method = {"dog": "qr", "cat": "lora"}[name]
        told = f"train base={base} image={name}.png output={name}.safetensors device=cpu rank=4 method={method}"
        assert ended(started(told.split(), home)) == 0, home.with_suffix(".log").read_text()
    return {name: text.format(base=f"base={base}", folder=base).split() for name, text in COMMANDS.items()}


def kill_all(home: Path, kills: int, seed: int, say: Callable[[str], object]) -> list[str]:
    """Kill so many times, the commands in turn. Returns what was wrong, a line each."""
    commands, chance, wrong = prepared(home), random.Random(seed), []
    wanted, takes, came = {}, {}, {name: Counter() for name in commands}
    for name, words in commands.items():
        folder, begun = fresh(home, name), time.monotonic()
        assert ended(started(words, folder)) == 0, folder.with_suffix(".log").read_text()
        wanted[name], takes[name] = files(folder), time.monotonic() - begun
    for k in range(kills):
        name = list(commands)[k % len(commands)]
        folder = fresh(home, name)
        seconds = chance.uniform(0, takes[name])
        came[name][killed(commands[name], folder, seconds, at_writing=k // len(commands) % 2 == 1)] += 1
        code, found = ended(started(commands[name], folder)), files(folder)
        if code:
            wrong.append(
                f"{name}, kill {k}: given again it ends with {code}: {folder.with_suffix('.log').read_text()[-500:]}"
            )
        if extra := found.keys() - wanted[name].keys():
            wrong.append(f"{name}, kill {k}: left over: {', '.join(sorted(extra))}")
        if changed := [path for path in wanted[name] if found.get(path) != wanted[name][path]]:
            wrong.append(f"{name}, kill {k}: missing or of other bytes: {', '.join(changed)}")
    for name, counts in came.items():
        told = ", ".join(f"{what} {count}" for what, count in counts.most_common())
        say(f"{name:8} {sum(counts.values())} kills within {takes[name]:.2f} s, which left: {told}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as home:
        wrong = kill_all(Path(home), options.kills, options.seed, print)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"{options.kills} kills: " + (f"{len(wrong)} faults" if wrong else "equal bytes, nothing left over"))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
