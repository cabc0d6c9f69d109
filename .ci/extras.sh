#!/usr/bin/env bash
# LoRA adapters and Weights & Biases (offline), in an environment of their own: where these are installed, Transformers
# and TRL take other paths.
source "$(dirname "$0")/beside.sh"

"$python" -m pip install --quiet --no-deps peft==0.21.2
"$python" -m pip install --quiet --constraint constraints.txt wandb==0.31.0
OMP_NUM_THREADS=1 "$python" -m pytest -q -m "" -k "test_peft or weights_and_biases" \
    tests/integrations/test_peft.py \
    tests/integrations/test_transformers_reports.py
