"""A pre-training step on a CPU: its batch through the model in parts, which stay in the cache, against the whole.

    python bench/pretraining_step.py --threads 1

Batches of 96 images of noise; the time is that of both passes and of the optimizers, which do not depend on what is
learnt. Parts as `CPU_PART` says are ours; the goal is that no other size is faster by a tenth.
"""

from functools import partial

import torch

from harness import Row, arguments, compare, report
from qrlora.world import pretraining_state
from qrlora.world.base_architectures import ARCHITECTURES, AUTOENCODERS
from qrlora.world.drawings import SIZE
from qrlora.world.pretraining_set import TrainingSet
from qrlora.world.pretraining_settings import PretrainingSettings
from qrlora.world.pretraining_state import CPU_PART, PretrainingRun, sample_batch, training_step

SIZES = (96, 32, 16, 8)
"""Images in other parts; the first is the batch."""


def compare_parts(base: str, batch_size: int, sizes: tuple[int, ...], rounds: int) -> Row:
    """One base's step, with parts of `CPU_PART` and of other sizes."""
    shape, side = AUTOENCODERS[base], SIZE // AUTOENCODERS[base].reduction
    labels = torch.zeros(batch_size, dtype=torch.long)
    latents = torch.randn(batch_size, shape.channels, side, side)
    data = TrainingSet(latents, labels, labels, labels, {"styled hands": (0, batch_size)})
    run = PretrainingRun(base, PretrainingSettings(batch_size=batch_size), "cpu")
    batch = sample_batch(run, data, 0)

    def step(size: int) -> None:
        pretraining_state.CPU_PART = size
        training_step(run, data, batch)

    ways = {f"parts of {CPU_PART}": partial(step, CPU_PART)}
    ways |= {f"parts of {size}" if size < batch_size else "the whole": partial(step, size) for size in sizes}
    goals = {way: ">=0.9x" for way in list(ways)[1:]}
    row = compare(f"pre-training step, {base}", ways, rounds, goals)
    return Row(row.name, row.measured, row.goals, {"images a second": f"{batch_size / row.median(row.ours):.1f}"})


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    batch_size, sizes, rounds = (32, (32, 8), 1) if options.quick else (SIZES[0], SIZES, 3)
    rows = [compare_parts(base, batch_size, sizes, rounds) for base in ARCHITECTURES]
    report("A pre-training step in parts", rows, options.folder)


if __name__ == "__main__":
    main()
