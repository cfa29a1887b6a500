"""TRL's SFTTrainer on the same rows, in an environment of its own (`benchmarks.training.environment`).

Its best settings on a CPU: float32 like ours and no activation checkpointing (its default costs a third); best-fit
packing with one packed sequence a micro-batch, since it flattens a micro-batch into one row of all its tokens, whose
attention grows with the square; `sdpa`, the only attention of transformers for CPUs that trains and is not eager
(flash attention needs a GPU, flex attention has no backward there), with the block-diagonal mask that transformers
derives from the positions; torch's fused AdamW; batches made in process, as a loader would share the one core.
Padded is the same without packing: rows in random order, batches of its default size, padded to their longest.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.training.arms import Arm, ArmSettings, OnStep, Order, Step

PADDED_BATCH_ROWS = 8  # SFTConfig's default
NO_LABEL = -100


@contextmanager
def open_trl(settings: ArmSettings, is_packed: bool) -> Iterator[Arm]:
    """Bind the process to its cores and load TRL."""
    os.sched_setaffinity(0, settings.cores)
    os.environ["HF_DATASETS_CACHE"] = str(settings.directory / "datasets")
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401  seconds of imports, no part of a run
    from trl import SFTTrainer  # noqa: F401

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    yield _Trl(is_packed)


class _Trl:
    def __init__(self, is_packed: bool) -> None:
        self._is_packed = is_packed

    def run(self, order: Order, on_step: OnStep) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        rows = read_rows(Path(order.rows))
        model = AutoModelForCausalLM.from_pretrained(order.model, dtype=torch.float32, attn_implementation="sdpa")
        trainer = build_timed_trainer(on_step)(
            model=model,
            args=build_config(
                order.workload, order.output_dir, self._micro_batches(order.workload, rows), self._is_packed
            ),
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(order.model),
        )
        trainer.train()

    def _micro_batches(self, workload: dict[str, Any], rows: Any) -> tuple[int, int]:
        """Rows of a micro-batch and micro-batches of a step, which has about as many tokens as ours."""
        if self._is_packed:
            return 1, workload["batch_sequences"]
        step_tokens = workload["batch_sequences"] * workload["sequence_length"]
        step_rows = step_tokens / fmean(map(len, rows["input_ids"]))
        return PADDED_BATCH_ROWS, max(1, round(step_rows / PADDED_BATCH_ROWS))


def read_rows(path: Path) -> Any:
    """Return the rows with the tokens and labels that SFTTrainer would have made of them."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    table = pq.read_table(path, columns=["prompt_token_ids", "completion_token_ids"]).to_pydict()
    pairs = list(zip(table["prompt_token_ids"], table["completion_token_ids"], strict=True))
    columns = {
        "input_ids": [prompt + completion for prompt, completion in pairs],
        "labels": [[NO_LABEL] * len(prompt) + completion for prompt, completion in pairs],
    }
    return Dataset.from_dict(columns)


def build_config(workload: dict[str, Any], output_dir: str, batch: tuple[int, int], is_packed: bool) -> Any:
    """Return the SFTConfig of a step of ``batch[1]`` micro-batches of ``batch[0]`` rows."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=output_dir,
        max_length=workload["sequence_length"],
        packing=is_packed,
        packing_strategy="bfd",
        per_device_train_batch_size=batch[0],
        gradient_accumulation_steps=batch[1],
        max_steps=workload["num_steps"],
        learning_rate=workload["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=workload["weight_decay"],
        adam_beta1=workload["beta1"],
        adam_beta2=workload["beta2"],
        max_grad_norm=workload["max_grad_norm"],
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        logging_steps=workload["num_steps"],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=workload["seed"],
    )


def build_timed_trainer(on_step: OnStep) -> Any:
    """Return SFTTrainer with a clock around its optimiser steps."""
    from transformers import TrainerCallback
    from trl import SFTTrainer

    class Timed(SFTTrainer):  # type: ignore[misc]
        """Notes the loss tokens of each step, which transformers counts anyway."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.step_loss_tokens = 0
            self.add_callback(Clock(self))

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            self.step_loss_tokens = int(num_items_in_batch)
            return super().training_step(model, inputs, num_items_in_batch)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self, trainer: Timed) -> None:
            self._trainer = trainer
            self._last = time.monotonic()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._last = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
            now = time.monotonic()
            on_step(Step(state.global_step, None, self._trainer.step_loss_tokens, now - self._last))
            self._last = now

    return Timed
