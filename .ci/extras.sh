#!/usr/bin/env bash
# LoRA adapters, Weights & Biases (offline) and Ray Tune, in an environment of their own: where the first are installed,
# Transformers and TRL take other paths; the last is large.
source "$(dirname "$0")/beside.sh"

"$python" -m pip install --quiet --no-deps peft==0.21.2
"$python" -m pip install --quiet --constraint constraints.txt wandb==0.31.0
"$python" -m pip install --quiet --constraint constraints.txt "ray[tune]"
OMP_NUM_THREADS=1 "$python" -m pytest -q -m "" -k "test_peft or test_ray or weights_and_biases" \
    tests/integrations/test_peft.py \
    tests/integrations/test_ray.py \
    tests/integrations/test_transformers_reports.py
