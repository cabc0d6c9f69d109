"""Cost of the core: plan, forecaster, monitor."""

import json
import statistics
import time
import tracemalloc

import numpy as np

from scale_callbacks import LossForecaster, Monitor, Schedule

RUN = 10_000_000


def median_ms(function, repeats=15):
    """Median processor time of a call in milliseconds: blind to other work on the machine."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def losses(count, seed=0):
    """Losses of a made-up run at every step."""
    noise = np.random.default_rng(seed).normal(0, 0.02, count)
    return 2.0 + 0.5 * (np.arange(1, count + 1) / count) ** -0.3 + noise


def measure():
    """Everything here, by name."""
    found = {}
    cosine = Schedule.cosine(1e-3, RUN, warmup=1000)
    found["plan of 10 million steps, ms"] = median_ms(lambda: Schedule.cosine(1e-3, RUN, warmup=1000))
    steps = np.linspace(0, RUN, 200)
    found["its areas at 200 steps, ms"] = median_ms(
        lambda: (cosine.area(steps), cosine.annealing_area(steps))
    )
    found["forecaster construction, ms"] = median_ms(lambda: LossForecaster(cosine))
    for seen in (1_000, 100_000, 1_000_000):
        forecaster = LossForecaster(Schedule.cosine(1e-3, 2 * seen, warmup=seen // 100))
        start = time.process_time()
        forecaster.observe(np.arange(1, seen + 1), losses(seen))
        per = (time.process_time() - start) / seen
        found[f"forecast at {seen:,} steps seen, ms"] = median_ms(forecaster.forecast)
        found[f"observation in a batch of {seen:,}, us"] = 1e6 * per
        found[f"state at {seen:,} steps seen, kB of JSON"] = len(json.dumps(forecaster.state_dict())) / 1e3
    found |= one_run(2_000) | one_run(50_000) | one_run(2_000, epochs=50) | long_run()
    return found


def one_run(horizon, epochs=1):
    """Cost of watching a whole run, one observation a step."""
    plan = Schedule.wsd(1e-3, horizon, warmup=50, cooldown=horizon // 5)
    monitor = Monitor(LossForecaster(plan, steps_per_epoch=horizon / epochs))
    values = losses(horizon).tolist()
    due, idle = 0.0, []
    for step, loss in enumerate(values, start=1):
        forecasts = monitor.due(step)
        start = time.process_time()
        monitor.observe(step, loss)
        spent = time.process_time() - start
        if forecasts:
            due += spent
        else:
            idle.append(spent)
    run = f"{horizon:,} steps" if epochs == 1 else f"{horizon:,} steps and {epochs} epochs"
    return {
        f"all forecasts of a run of {run}, s": due,
        f"observation with nothing due, run of {run}, us": 1e6 * statistics.median(idle),
    }


def long_run():
    """Memory of a monitor that has seen every step of a very long run.

    What it keeps is bounded, so a forecast costs what it does after a thousand.

    Tracing allocations slows each step tenfold, so the run is watched untraced, and what it holds at its end
    is measured on a monitor restored from its state, which holds the same.
    """
    monitor = Monitor(LossForecaster(Schedule.cosine(1e-3, RUN, warmup=1000)))
    for step in range(1, RUN + 1):
        monitor.observe(step, 2.0 + 1.0 / step)
    state = monitor.state_dict()
    tracemalloc.start()
    restored = Monitor(LossForecaster(Schedule.cosine(1e-3, RUN, warmup=1000)))
    restored.load_state_dict(state)
    restored.forecaster.forecast()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "forecast at 10,000,000 steps seen, ms": median_ms(monitor.forecaster.forecast),
        "monitor after 10 million steps, MB": held / 1e6,
        "its peak while forecasting, MB": peak / 1e6,
        "its state, kB of JSON": len(json.dumps(state)) / 1e3,
    }
