#!/usr/bin/env bash
# LoRA adapters, in an environment of its own: where PEFT is installed, Transformers and TRL take other paths.
source "$(dirname "$0")/beside.sh"

"$python" -m pip install --quiet --no-deps peft==0.21.2
OMP_NUM_THREADS=1 "$python" -m pytest -q tests/integrations/test_peft.py
