#!/usr/bin/env bash
# Runs the tests of the GPU path, in under 8 minutes, and keeps what they measure in
# tests/benchmarks/results/gpu.json (or in $OUT/gpu.json).
#
# It needs: Linux on x86_64, an NVIDIA driver for CUDA 13 (580 or later), Python 3.11 to 3.13, 15 GB of disk. No CUDA
# toolkit. Packages come from PyPI (4 GB), or from a folder of wheels, for a machine without a network:
#
#   python -m pip download --dest WHEELS '.[cuda]' 'pytest>=8.3' 'hatchling>=1.27'   # on a machine with a network
#   WHEELS=path/of/WHEELS tests/gpu/run.sh
#
# TENSORRT=1 also installs TensorRT 10 (tensorrt-cu13<11, 2 GB more) and demands its tests.
# PYTHON names the interpreter, or one whose packages are there already if INSTALL=0.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
if [ "${INSTALL:-1}" = 1 ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  "$python" -m venv "$folder/venv"
  python=$folder/venv/bin/python
  from=()
  [ -z "${WHEELS:-}" ] || from=(--no-index --find-links "$WHEELS")
  packages=('.[cuda]' 'pytest>=8.3')
  [ "${TENSORRT:-0}" != 1 ] || packages+=('tensorrt-cu13<11')
  "$python" -m pip install --quiet "${from[@]}" "${packages[@]}"
fi

export GENAI_RAY_NEEDS_GPU=1
[ "${TENSORRT:-0}" != 1 ] || export GENAI_RAY_NEEDS_TENSORRT=1
export GENAI_RAY_GPU_JSON=${OUT:-tests/benchmarks/results}/gpu.json
"$python" -m pytest -m gpu -q -p no:cacheprovider --durations=10 tests/gpu
"$python" -m genai_ray.cli doctor || true # what it says of the GPU, for the reader
