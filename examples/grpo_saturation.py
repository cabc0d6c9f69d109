"""Post-train a tiny model with TRL's GRPOTrainer and let the saturation rule say when to stop.

    python examples/grpo_saturation.py

A Qwen2 of 48 thousand parameters first copies a sloppy teacher who writes the nines' complement of six digits
("314159=" asks for "685840"); then GRPO makes it right, with a reward that checks the answer. Nothing to
download.
"""

import json
import logging
import os
import random
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from the hub

import torch
import typer
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as logging_of_transformers
from trl import GRPOConfig, GRPOTrainer

from scale_callbacks.integrations.transformers import SaturationStoppingCallback

DIGITS = 6  # of a question
CHARACTERS = ["<pad>", "<eos>", "=", *"0123456789"]
SLOPPY = torch.linspace(0.3, 0.8, 10)  # how often the teacher writes any digit at all, by the digit asked for
LESSONS, CLASS, LESSON_RATE = 400, 64, 3e-3  # steps, questions a step, peak learning rate
PROMPTS, GENERATIONS = 4, 8  # a GRPO step
WARMUP = 0.05  # share of the steps; then the rate falls linearly to zero, as is TRL's default

# Outages of the checker: how many, share of the run each, where in it they begin, right answers still taken.
OUTAGES, OUTAGE, AMONG, PASSED = 3, 0.03, (0.5, 0.85), 0.7

Reward = Callable[..., list[float]]


# --- the rewards --------------------------------------------------------------------------------------------


def nines(question: str) -> str:
    """The right answer: each digit's complement to nine."""
    return "".join(str(9 - int(digit)) for digit in question.rstrip("="))


def share_right(prompts: list[str], completions: list[str]) -> list[float]:
    """Share of the characters that are right, of each completion."""
    return [
        sum(a == b for a, b in zip(nines(prompt), completion, strict=False)) / max(DIGITS, len(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def smooth(seed: int) -> Reward:
    """Every right character counts: rises at once and levels off."""

    def smooth(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return share_right(prompts, completions)

    return smooth


def s_shaped(seed: int) -> Reward:
    """Near misses count little: slow at first, then fast, then level."""

    def s_shaped(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [share**6 for share in share_right(prompts, completions)]

    return s_shaped


def zero_one(seed: int) -> Reward:
    """All right or nothing, from a checker that is overloaded at times and then fails right answers too."""
    chance = random.Random(seed)
    outages = [chance.uniform(*AMONG) for _ in range(OUTAGES)]

    def zero_one(
        prompts: list[str], completions: list[str], *, trainer_state: TrainerState, **_: Any
    ) -> list[float]:
        now = trainer_state.global_step / trainer_state.max_steps
        down = any(start <= now < start + OUTAGE for start in outages)
        return [
            float(share == 1.0 and not (down and chance.random() > PASSED))
            for share in share_right(prompts, completions)
        ]

    return zero_one


@dataclass(frozen=True)
class Task:
    """A reward, and the run planned for it: twice the steps that 95% of the gain takes."""

    reward: Callable[[int], Reward]
    steps: int
    learning_rate: float


# Settings, the seeds 0 to 4 and the budgets were fixed before any rule was run on these tasks. A budget is
# twice the step at which the reward, smoothed, has made 95% of its way from the mean of the first 2% of the
# steps to the mean of the last tenth: 205 and 211 (smooth), 198 and 199 (s-shaped), 212 and 187 (zero-one)
# in runs of 400 steps with the seeds 10 and 11.
SEEDS = range(5)
TASKS = {
    "smooth": Task(smooth, 400, 5e-4),
    "s-shaped": Task(s_shaped, 400, 7e-4),
    "zero-one": Task(zero_one, 400, 7.5e-4),
}


# --- the model ----------------------------------------------------------------------------------------------


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def schooled_model() -> Qwen2ForCausalLM:
    """A tiny Qwen2 that has copied the sloppy teacher."""
    config = Qwen2Config(
        vocab_size=len(CHARACTERS),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LESSON_RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, 1.0, 2.0 * (1.0 - step / LESSONS))
    )
    zero, equals, end = (CHARACTERS.index(character) for character in ("0", "=", "<eos>"))
    for _ in range(LESSONS):
        asked = torch.randint(10, (CLASS, DIGITS))
        slip = torch.rand(CLASS, DIGITS) < SLOPPY[asked]
        told = torch.where(slip, torch.randint(10, (CLASS, DIGITS)), 9 - asked)
        ends = torch.full((CLASS, 1), equals), torch.full((CLASS, 1), end)
        text = torch.cat([asked + zero, ends[0], told + zero, ends[1]], dim=1)
        labels = text.clone()
        labels[:, : DIGITS + 1] = -100  # only the answer is learned
        model(text, labels=labels).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model


# --- the training -------------------------------------------------------------------------------------------


class Rewards(TrainerCallback):
    """Keeps what every step logged, shows the reward every tenth of the run, writes JSON lines to a file."""

    def __init__(self, stopping: SaturationStoppingCallback | None = None, file: Path | None = None) -> None:
        self.stopping, self.file = stopping, file
        self.rows: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if "reward" not in logs:
            return
        self.rows.append({"step": state.global_step, **logs})
        tenth = max(1, state.max_steps // 10)
        if state.global_step % tenth == 0:
            forecast = self.stopping.forecast if self.stopping else None
            told = (
                f", forecast {forecast.value:.3f} ({forecast.low:.3f} to {forecast.high:.3f})"
                if forecast
                else ""
            )
            print(f"step {state.global_step:4,}: reward {self.mean(last=tenth):.3f}{told}", flush=True)
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")

    def mean(self, *, first: int | None = None, last: int = 0) -> float:
        """Mean reward of the first or of the last steps."""
        some = [row["reward"] for row in self.rows[-last:first]]
        return sum(some) / len(some)


def grpo(task: Task, *, seed: int, steps: int, callbacks: list[TrainerCallback], out: Path) -> GRPOTrainer:
    """A GRPO trainer of a freshly schooled model."""
    torch.manual_seed(seed)
    random.seed(seed)
    questions = [
        {"prompt": "".join(random.choices("0123456789", k=DIGITS)) + "="} for _ in range(steps * PROMPTS)
    ]
    args = GRPOConfig(
        output_dir=str(out),
        max_steps=steps,
        learning_rate=task.learning_rate,
        warmup_steps=round(WARMUP * steps),
        per_device_train_batch_size=PROMPTS * GENERATIONS,
        num_generations=GENERATIONS,
        max_completion_length=DIGITS + 1,
        seed=seed,
        logging_steps=1,
        save_steps=steps,  # at the end, and where the run is stopped
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
    )
    trainer = GRPOTrainer(
        schooled_model(),
        reward_funcs=task.reward(seed),
        args=args,
        train_dataset=Dataset.from_list(questions),
        processing_class=character_tokenizer(),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def hush() -> None:
    """Keep other packages' advice off a newcomer's screen; what ours has to say is said."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    disable_progress_bar()
    logging_of_transformers.disable_progress_bar()
    for name in ("transformers", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")


def main(
    reward: Annotated[Literal["smooth", "s-shaped", "zero-one"], typer.Option()] = "smooth",
    seed: Annotated[int, typer.Option(help="Of the model, the questions and the answers drawn.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=20, help="Budget; by default what fits the reward.")
    ] = None,
    to_the_end: Annotated[
        bool, typer.Option("--to-the-end", help="Then go on from the stop, to see what was left out.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="Use no rule, and write what every step logs to this file.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for what the run leaves.")] = Path("runs/grpo"),
) -> None:
    """Post-train a tiny model with GRPO until its reward has saturated."""
    hush()
    torch.set_num_threads(1)
    task = TASKS[reward]
    steps = steps or task.steps
    stopping = None if record else SaturationStoppingCallback()
    rewards = Rewards(stopping, record)
    callbacks = [rewards] if stopping is None else [stopping, rewards]
    print(
        f"A tiny Qwen2 goes to school; then GRPO with the {reward} reward has {steps} steps to spend.",
        flush=True,
    )
    trainer = grpo(task, seed=seed, steps=steps, callbacks=callbacks, out=out)
    begun = time.perf_counter()
    trainer.train()
    pace = (time.perf_counter() - begun) / len(rewards.rows)

    tenth = max(1, steps // 10)
    start, reached = rewards.mean(first=max(1, steps // 50)), rewards.mean(last=tenth)
    stop = None if stopping is None else stopping.stopped_step
    if stop is None:
        print(f"It went on to its end: the reward rose from {start:.3f} to {reached:.3f}.")
        return
    saved = steps - stop
    print(f"The reward rose from {start:.3f} to {reached:.3f}.")
    print(f"Saved: {saved} of {steps} steps, {saved / steps:.0%}, {saved * pace:.0f} seconds here.")
    if not to_the_end:
        print("What would they have brought? --to-the-end goes on from the checkpoint of the stop.")
        return
    trainer.remove_callback(stopping)
    rewards.stopping = None
    trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{stop}"))
    end = rewards.mean(last=tenth)
    share = (reached - start) / (end - start)
    print(f"They would have brought {end - reached:+.3f}: at the stop, {share:.0%} of the gain was reached.")


if __name__ == "__main__":
    typer.run(main)
