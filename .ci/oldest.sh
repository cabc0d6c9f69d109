#!/usr/bin/env bash
# The callbacks for Transformers and TRL with the oldest versions of both that are supported (the lower bounds in
# pyproject.toml); everything else is what the environment of the other checks has.
source "$(dirname "$0")/beside.sh"

"$python" -m pip install --quiet --constraint .ci/constraints-oldest.txt transformers trl accelerate
"$python" -c 'import transformers, trl; print("transformers", transformers.__version__, "trl", trl.__version__)'
OMP_NUM_THREADS=1 "$python" -m pytest -q \
    tests/integrations/test_transformers.py \
    tests/integrations/test_transformers_saturation.py \
    tests/integrations/test_transformers_reports.py \
    tests/integrations/test_trl.py
