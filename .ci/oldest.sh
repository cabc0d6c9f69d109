#!/usr/bin/env bash
# The callbacks for Transformers and TRL with the oldest versions of both that are supported (the lower bounds in
# pyproject.toml); everything else is what the environment of the other checks has.
set -euo pipefail
cd "$(dirname "$0")/.."
newest=${1:-.venv/bin/python}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$newest" -m venv "$work/venv"
python="$work/venv/bin/python"
where='import sysconfig; print(sysconfig.get_path("purelib"))'
"$newest" -c "$where" >"$("$python" -c "$where")/newest.pth" # found after the environment's own packages

"$python" -m pip install --quiet --constraint .ci/constraints-oldest.txt transformers trl accelerate
"$python" -c 'import transformers, trl; print("transformers", transformers.__version__, "trl", trl.__version__)'
OMP_NUM_THREADS=1 "$python" -m pytest -q \
    tests/integrations/test_transformers.py \
    tests/integrations/test_transformers_saturation.py \
    tests/integrations/test_transformers_reports.py \
    tests/integrations/test_trl.py
