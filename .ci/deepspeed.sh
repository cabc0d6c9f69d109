#!/usr/bin/env bash
# The look-ahead on DeepSpeed's own schedulers, in an environment of its own: where DeepSpeed is installed, Accelerate
# and TRL behave otherwise, and the other tests are for those who do not have it.
source "$(dirname "$0")/beside.sh"

"$python" -m pip install --quiet --no-deps deepspeed==0.19.8 einops==0.8.2 hjson==3.1.0 ninja==1.13.2 py-cpuinfo==9.0.0
OMP_NUM_THREADS=1 "$python" -m pytest -q tests/integrations/test_torch_schedule.py -k DeepSpeed
