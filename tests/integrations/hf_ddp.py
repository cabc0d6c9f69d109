"""One of two processes that `torchrun` starts."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
import transformers

from scale_callbacks import SaturationRule
from scale_callbacks.integrations.transformers import SaturationStoppingCallback
from tests.integrations.hf_runs import Rewarded, trainer


def run(folder: Path, callback: SaturationStoppingCallback, resume: str | None = None) -> dict[str, Any]:
    loop = trainer(
        folder,
        callback,
        kind=Rewarded,
        max_steps=300,
        save_strategy="steps",
        save_steps=40 if resume else 1000,
        per_device_train_batch_size=2,
        ddp_find_unused_parameters=False,
    )
    loop.train(resume_from_checkpoint=resume)
    dist.barrier()
    watch = callback._watch
    return {
        "step": loop.state.global_step,
        "reason": callback.stopping_reason,
        "saved": sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")),
        "history": [] if watch is None else [[p.step, p.value, p.low, p.high] for p in watch.monitor.history],
        "warnings": dict(callback.warnings),
    }


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    results = {"sound": run(folder / "sound", SaturationStoppingCallback())}

    # Process 1 would never stop by itself.
    deaf = SaturationStoppingCallback(rule=SaturationRule(stop_on=()) if rank else None)
    results["deaf"] = run(folder / "deaf", deaf)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("boom")

    lame = SaturationStoppingCallback()
    if rank == 0:
        lame.make_monitor = fail  # type: ignore[method-assign]
    results["lame"] = run(folder / "lame", lame)

    if transformers.__version__ >= "5":  # older ones cannot load an optimizer from "cpu:0"
        # Only process 0 finds its state: the other one needs none.
        part = trainer(
            folder / "resumed",
            SaturationStoppingCallback(),
            kind=Rewarded,
            max_steps=300,
            save_strategy="steps",
            save_steps=40,
            per_device_train_batch_size=2,
            ddp_find_unused_parameters=False,
        )
        part.train()
        results["resumed"] = run(
            folder / "resumed", SaturationStoppingCallback(), str(folder / "resumed" / "checkpoint-40")
        )
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
