"""Checks of models and tokenizers before anything costs money: what is wrong is said before a replica starts."""

import json
from pathlib import Path
from typing import Any

from cluster.models import TeacherSource, student_tokenizer, teacher_source
from cluster.run_dir import RunDir
from configs.errors import UserError
from configs.schema import RunConfig, TransferMode
from services.prompts import read_prompts
from services.watermark.key import load_key
from training.job import Transfer
from training.trackers import check_trackers


def check_models(config: RunConfig, run_dir: RunDir) -> Transfer:
    """Check that models, templates and tokenizers fit; returns how rows are handed to the student.

    Raises:
        UserError: a directory is missing, a chat template is, the tokenizers differ where token ids are to be handed
            over, or the student's context is shorter than the training sequences.
    """
    check_sources(config)
    sources = {name: teacher_source(config, run_dir, name) for name in config.pool}
    for name, source in sources.items():
        _check_template(config, name, source)
    student = student_tokenizer(config, sources[config.main_teacher])
    transfers = {_transfer(config, student, (source.model, source.revision)) for source in sources.values()}
    transfer = transfers.pop() if len(transfers) == 1 else Transfer.TEXT
    if transfer is Transfer.TEXT and config.training.objective.kl_weight:
        raise UserError(
            "training.objective.kl_weight compares teacher and student token by token, which needs equal tokenizers, "
            "and completions are handed over as text (student.transfer); set it to 0"
        )
    return transfer


def check_sources(config: RunConfig) -> None:
    """Check what can be seen without loading anything: directories, context lengths, what is installed, keys of marks.

    Raises:
        UserError: something is not there or does not fit.
    """
    check_trackers(config.training.trackers)
    for name, teacher in config.pool.items():
        if teacher.model is not None:
            _check_source(f"{config.teacher_key(name)}.model", teacher.model)
    for mark in config.watermarks.values():
        load_key(mark.key_env, mark.key_file, mark.key_id)
    if config.student.model is not None:
        _check_source("student.model", config.student.model)
        _check_context(config, config.student.model)


def _check_source(key: str, source: str) -> None:
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{key}: {source} is no Hugging Face model directory, as it has no config.json")
        return
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise UserError(f"{key}: there is no model directory {source}; give one, or a repository as OWNER/NAME")


def _check_context(config: RunConfig, student: str) -> None:
    path = Path(student) / "config.json"
    if not path.is_file():  # a Hub repository; the trainer checks it when it has been downloaded
        return
    context = _context_length(json.loads(path.read_text()))
    if context is not None and context < config.training.sequence_length:
        raise UserError(
            f"training.sequence_length ({config.training.sequence_length}) exceeds the context of student.model, "
            f"{context} tokens; set training.sequence_length={context}, or take a student with a longer context"
        )


def _context_length(model_config: dict[str, Any]) -> int | None:
    return model_config.get("max_position_embeddings") or model_config.get("n_positions")


def _check_template(config: RunConfig, name: str, source: TeacherSource) -> None:
    """A chat needs a template; looks at the first prompt, as a source is of one form."""
    if config.pool[name].make is not None:
        return
    first = next(iter(read_prompts(config.prompts, tuple(config.teachers))), None)
    if first is None or first.error is not None or isinstance(json.loads(first.prompt), str):
        return
    from services.template import PromptRenderer

    renderer = PromptRenderer.load(source.model, source.revision, {}, config.pool[name].trust_remote_code)
    if not renderer.has_chat_template:
        raise UserError(
            f"{config.teacher_key(name)}.model: the tokenizer of {source.model} has no chat template, which prompts "
            f"with {config.prompts.messages_column!r} need; add chat_template.jinja to it, or give plain prompts in "
            f"{config.prompts.prompt_column!r}"
        )


def _transfer(config: RunConfig, student: tuple[str, str | None], teacher: tuple[str, str | None]) -> Transfer:
    """Each is given by its tokenizer and the revision of that."""
    wanted = config.student.transfer
    if wanted is TransferMode.TEXT:
        return Transfer.TEXT
    if student == teacher:
        return Transfer.TOKEN_IDS
    from training.tokenizer import find_tokenizer_difference

    difference = find_tokenizer_difference(teacher[0], student[0], teacher[1], student[1])
    if difference is None:
        return Transfer.TOKEN_IDS
    if wanted is TransferMode.TOKEN_IDS:
        raise UserError(
            f"student.transfer=token_ids needs equal tokenizers, and those of teacher and student differ in "
            f"{difference}; set student.transfer=text to tokenise the completions anew"
        )
    return Transfer.TEXT
