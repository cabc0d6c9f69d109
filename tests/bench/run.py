"""Run every benchmark of this folder and write what they measured to runs/bench/bench.json.

Each `bench_*.py` has one function `measure()` that returns {what, with its unit: number}. The machine may be
shared: figures are medians, and ratios are taken within one run.
"""

import importlib.util
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: see examples/pretrain_gpt.py
HERE = Path(__file__).parent
OUT = Path("runs/bench")


def main(wanted: list[str]) -> None:
    """Run the benchmarks whose name holds one of the given words, or all."""
    results = {}
    for path in sorted(HERE.glob("bench_*.py")):
        if wanted and not any(word in path.stem for word in wanted):
            continue
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        results[path.stem] = module.measure()
        table = Table("what", "figure", title=path.stem)
        for what, figure in results[path.stem].items():
            table.add_row(what, f"{figure:,.4g}")
        Console().print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
    (OUT / "bench.json").write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    print(f"wrote {OUT / 'bench.json'}")


if __name__ == "__main__":
    main(sys.argv[1:])
