"""The program as a user types it, and small models and recipes for it to work on."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
CHARACTERS = "0123456789+=; abcdefghijklmnopqrstuvwxyz?."
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "qwen3": {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128},
}
# The quickstart made small, but with its teacher, which the runs of a session share.
SMALL = (
    "configs/recipes/quickstart.yaml",
    "prompts.addition.num_problems=768",
    "generation.shard_rows=64",
    "evaluation.addition.num_problems=64",
    "training.max_steps=40",
    "training.checkpoint_every=5",
    "training.log_every=5",
    "student.control=false",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left behind: exit status and both streams."""

    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """The environment of a user's shell, without what a test session adds to it."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTEST", "VLLM_"))}


def progress_of(directory: Path) -> dict[str, Any]:
    """What a run's progress file says; of a run that has not begun, no phase and nothing done."""
    try:
        state: dict[str, Any] = json.loads((directory / "progress.json").read_text())
    except FileNotFoundError:
        return {"phase": "", "done": 0}
    return state


def start(*arguments: str, cwd: Path = ROOT) -> "subprocess.Popen[str]":
    """Start the program in a process group of its own, so that a test can send it what a terminal would."""
    return start_python("-m", "cluster", *arguments, cwd=cwd)


def start_python(*arguments: str, cwd: Path = ROOT, **variables: str) -> "subprocess.Popen[str]":
    """Start the interpreter likewise, with ``variables`` added to its environment."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_code(code: str, *arguments: str, timeout_s: float = 100, **variables: str) -> Outcome:
    """Run ``code`` in a process of its own, with whatever it starts ended at its end."""
    with start_python("-c", code, *arguments, **variables) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            end_session(process.pid)
    return Outcome(process.returncode, out, err)


def stillhouse(*arguments: str, timeout_s: float = 280) -> Outcome:
    """Run the program to its end."""
    with start(*arguments) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            end_session(process.pid)
            raise
    return Outcome(process.returncode, out, err)


def processes_of(session: int) -> list[psutil.Process]:
    """All processes of a session that `start` began, the program's children and theirs included."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def end_session(session: int) -> None:
    """End whatever a test left running in a session of its own."""
    for process in processes_of(session):
        with suppress(psutil.NoSuchProcess):  # it has ended with another one
            process.kill()


def make_model(directory: Path, model_type: str, characters: str = CHARACTERS, *, template: bool = True) -> Path:
    """A tiny model with a character tokenizer, as a Hugging Face directory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from training.tokenizer import build_character_tokenizer

    tokenizer = build_character_tokenizer(characters, CHAT_TEMPLATE if template else None)
    torch.manual_seed(0)
    size = SIZES[model_type] | ({} if model_type == "gpt2" else {"max_position_embeddings": 128})
    config = AutoConfig.for_model(model_type, **size, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return directory


def write_lines(path: Path, lines: list[Any]) -> Path:
    """A JSONL file; strings are written as they are, so that a line can be broken."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def write_recipe(path: Path, **sections: Any) -> Path:
    """A recipe of a run beside it, in its own directory."""
    tree = {
        "name": "test",
        "run_dir": str(path.parent / "run"),
        "sampling": {"max_tokens": 8, "temperature": 0.0, "truncation": "keep"},
        "generation": {"shard_rows": 8},
        "terms": {"prompts": {"license": "own"}},
        "training": {"sequence_length": 64, "batch_sequences": 2, "max_steps": 3, "dtype": "float32"},
    }
    path.write_text(json.dumps(tree | sections))
    return path
