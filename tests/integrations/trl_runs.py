"""Tiny real trainings with TRL: a small model from a config, and a tokenizer of single characters."""

import inspect
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback

torch.set_num_threads(1)

LETTERS = "abcdefgh "
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *LETTERS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    raw.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(LETTERS) + 3,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        tie_word_embeddings=True,
        **SMALL,
    )
    return Qwen2ForCausalLM(config)


def letters(completions: list[str], **_: Any) -> list[float]:
    """Share of the letter a."""
    return [text.count("a") / max(len(text), 1) for text in completions]


def sometimes(completions: list[str], **_: Any) -> list[float | None]:
    """A reward that does not apply to any of the prompts."""
    return [None] * len(completions)


def settings(config: Any, folder: Path, **wanted: Any) -> Any:
    """Arguments for a CPU, of those that this version of TRL knows."""
    usual = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": 4,
        "max_steps": 12,
    }
    known = inspect.signature(config).parameters
    return config(**{name: value for name, value in {**usual, **wanted}.items() if name in known})


def prompts(count: int = 16) -> Dataset:
    return Dataset.from_dict({"prompt": [LETTERS[i % 8] + " " for i in range(count)]})


def grpo(folder: Path, *callbacks: TrainerCallback, rewards: Any = letters, **wanted: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    sizes = {
        "num_generations": 4,
        "max_completion_length": 4,
        "max_prompt_length": None,
        "learning_rate": 1e-2,
    }
    return GRPOTrainer(
        model=model(),
        reward_funcs=rewards,
        args=settings(GRPOConfig, folder, **{**sizes, **wanted}),
        train_dataset=prompts(),
        eval_dataset=prompts(4),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )


def sft(folder: Path, *callbacks: TrainerCallback, **wanted: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_dict({"text": ["abc abc abc", "cab cab", "abcabc abcabc abc", "ab ab ab ab"] * 8})
    return SFTTrainer(
        model=model(),
        args=settings(SFTConfig, folder, **{"max_length": 16, "learning_rate": 1e-2, **wanted}),
        train_dataset=data,
        eval_dataset=data.select(range(8)),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )


def dpo(folder: Path, *callbacks: TrainerCallback, **wanted: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    rows = {"prompt": ["a ", "b "] * 16, "chosen": ["abc", "abcd"] * 16, "rejected": ["hgf", "hg"] * 16}
    return DPOTrainer(
        model=model(),
        ref_model=model(),
        args=settings(DPOConfig, folder, **{"max_length": 16, "learning_rate": 1e-2, **wanted}),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )


def rloo(folder: Path, *callbacks: TrainerCallback, **wanted: Any) -> Any:
    from trl import RLOOConfig, RLOOTrainer

    sizes = {"num_generations": 4, "max_completion_length": 4, "beta": 0.0, "learning_rate": 1e-2}
    return RLOOTrainer(
        model=model(),
        reward_funcs=letters,
        args=settings(RLOOConfig, folder, **{**sizes, **wanted}),
        train_dataset=prompts(),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )


def online_dpo(folder: Path, *callbacks: TrainerCallback, **wanted: Any) -> Any:
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    sizes = {"max_new_tokens": 4, "max_length": 32, "learning_rate": 1e-2}
    return OnlineDPOTrainer(
        model=model(),
        ref_model=model(),
        reward_funcs=letters,
        args=settings(OnlineDPOConfig, folder, **{**sizes, **wanted}),
        train_dataset=prompts(),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )
