#!/usr/bin/env bash
# The first ten minutes that this project ever spends on a GPU. From the root of a checkout:
#
#   bash tests/gpu/first_run.sh                            # all parts in order of value, until BUDGET seconds are spent
#   bash tests/gpu/first_run.sh pretrain                   # one part or several by name, in that order
#   BASE=tiny-flux,tiny-sd3,tiny-sdxl bash tests/gpu/first_run.sh pretrain   # all built-in bases go on, a third each
#   DEVICE=cpu DRY=1 BUDGET=3600 bash tests/gpu/first_run.sh   # a dry run on any machine: tiny sizes, the same code
#
# Parts: facts smoke estimates peft quantised decode cards bench tests pretrain (first_run.py says what each does).
# Nothing stops at a failure: each part is a process with a time limit of its own, what it found so far is kept line by
# line, and the table comes at the end whatever happened. Written to $OUT, 8 files at most, each below 16 MB:
# summary.md, results.jsonl, logs.tar.gz, reports.tar.gz, and the pre-trained base in pieces
# (cat base.tar.part* | tar x).
#
# BUDGET    seconds for all, 560 by default       DEVICE  cuda by default      DRY=1  tiny sizes
# BASE      the base to pre-train from its shipped weights on, or several: a,b; tiny-sdxl by default
# PRETRAIN  arguments of `python -m qrlora.world.pretrain`, such as "--batch-size 192 --learning-rate 0.0015";
#           "--start ''" begins anew
# SHEETS    a folder of the full sheets of drawings, which `python -m qrlora.world.render_sheets --output FOLDER` makes where
#           npm is; without it the bases see the excerpt that ships, 35 or 40 contents by each hand but the first
#
# Where the machine has torch, transformers, peft and accelerate but no network, take the rest along as wheels:
#
#   python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     $(for n in 2_28 2_27 2_24 2_17; do echo --platform manylinux_${n}_x86_64; done) --platform manylinux2014_x86_64 \
#     -d .whl diffusers==0.42.1 platformdirs importlib_metadata torchao==0.18.0 prodigyopt
#   python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target .site .whl/*.whl
#   PYTHONPATH=.site bash tests/gpu/first_run.sh
#
# nf4 needs bitsandbytes, too. Of the bases, src/qrlora/world/bases and packages/qrlora-bases, BASE and tiny-flux are used.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export OUT=${OUT:-out/gpu} DEVICE=${DEVICE:-cuda} DRY=${DRY:-} BUDGET=${BUDGET:-560}
export BASE=${BASE:-tiny-sdxl} PRETRAIN=${PRETRAIN:-}
export PYTHONPATH="src:packages/qrlora-bases/src:testing:tests:bench${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTORCH_NVML_BASED_CUDA_CHECK=1 # no CUDA before a part begins
mkdir -p "$OUT"
WORK=$(mktemp -d)
export WORK QRLORA_CACHE=$WORK/cache
mkdir -p "$WORK/logs" "$WORK/reports" "$QRLORA_CACHE"
if [ -n "${SHEETS:-}" ]; then ln -s "$(realpath "$SHEETS")" "$QRLORA_CACHE/sheets"; fi # where they are looked for
: >"$OUT/results.jsonl"
python=${PYTHON:-python3}

finish() {
  trap - EXIT INT TERM
  "$python" "$here/first_run.py" summary >"$OUT/summary.md" 2>>"$WORK/logs/all.log"
  tar czf "$OUT/logs.tar.gz" -C "$WORK" logs
  tar czf "$OUT/reports.tar.gz" -C "$WORK" reports
  cat "$OUT/summary.md"
  rm -rf "$WORK"
}
trap finish EXIT
trap 'exit 130' INT TERM

timeout --kill-after=5 "$BUDGET" "$python" "$here/first_run.py" all "$@" 2>&1 | tee "$WORK/logs/all.log"
