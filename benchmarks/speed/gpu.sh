#!/usr/bin/env bash
# Everything that a GPU has to show, in under ten minutes and 64 MiB:
#
#   benchmarks/speed/gpu.sh OUT [--data camvid:ROOT]
#
# It checks the kernels against float64, times forward, backward, whole models, compiled ones and bfloat16 beside their
# peers, and trains one cell of the evidence matrix. OUT gets JSON and logs. PYTHON names the interpreter, python3 unless
# given. benchmarks/speed/gpu.py has the steps; --small tries them on a CPU.
set -euo pipefail
PYTHONPATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
exec timeout --kill-after=10 590 "${PYTHON:-python3}" -m benchmarks.speed.gpu "$@"
