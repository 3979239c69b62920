#!/usr/bin/env bash
# Python with an emulated GPU, from the root of a checkout: tests/gpu/run.sh -m pytest tests/gpu/emulated.py
# The emulation is built once for the torch at hand, of which it holds the path, and when its source is newer, in
# EMU_STORE (half a minute); needs g++.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-.venv/bin/python}
store=${EMU_STORE:-${TMPDIR:-/tmp}/emu-$("$python" -c 'import torch, sys, zlib; print(torch.__version__.replace("+", "_"), *sys.version_info[:2], zlib.crc32(torch.__file__.encode()), sep="-")')}
export EMU_SO=$store/emu.so OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
if [ ! "$EMU_SO" -nt "$here/emu.cpp" ]; then
  mkdir -p "$store"
  readarray -t flags < <("$python" - <<'PYTHON'
import sysconfig

import torch
from torch.utils import cpp_extension

libraries = cpp_extension.library_paths()[0]
print(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}")
print(*(f"-I{p}" for p in [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]), sep="\n")
print(f"-L{libraries}", "-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python", f"-Wl,-rpath,{libraries}", sep="\n")
PYTHON
  )
  built=$(mktemp "$store/XXXXXX")
  g++ -std=c++20 -O0 -fPIC -shared -w -DTORCH_EXTENSION_NAME=emu "$here/emu.cpp" -o "$built" "${flags[@]}"
  mv "$built" "$EMU_SO"
fi
LD_PRELOAD=$EMU_SO exec "$python" "$@"
