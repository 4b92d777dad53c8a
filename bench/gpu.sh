#!/bin/sh
# Everything that needs a GPU, on a machine with one and no network: tests, resuming, benchmarks, a real grid.
#
#   bench/gpu.sh MINUTES OUT [--images FOLDER --called NAME] [--phases tests,resume,bench,grid] [--work FOLDER]
#
# The benchmarks take half of the time that is left when they begin; the grid's seeds fill the rest. With --work, a later
# call with --phases grid goes on with it.
#
# PYTHON names the python that has torch; WHEELS a folder of wheels of packages that it lacks, put where only this run
# sees them. FOLDER holds train/CLASS/* and test/CLASS/*; without it the grid is left out.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" "$root/bench/gpu.py" "$@"
