"""Builds the student, from a Hugging Face checkpoint or from random weights, and says where its parts are."""

import difflib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from configs.errors import UserError
from training.job import TrainJob

# Keys of model configurations that say the logits are more than one linear map of the hidden states, which the loss
# would get wrong; with the value that means no change.
_LOGIT_TRANSFORMS = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}


def load_tokenizer(path: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a directory or Hub repository; UserError names what is missing."""
    _check_directory(path, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the tokenizer {path!r}: {_first_line(error)}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def build_model(job: TrainJob, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the student in float32 on the CPU, the same on every rank.

    UserError names the key when the checkpoint is missing, when its context is shorter than
    ``training.sequence_length`` or its vocabulary smaller than the tokenizer's.
    """
    if (job.model is None) == (job.init is None):
        raise UserError("set exactly one of student.model (weights to start from) and student.init (random weights)")
    model = _load_model(job) if job.model is not None else _initialise_model(job, tokenizer)
    _check_model(model, job, tokenizer)
    if job.training.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def find_decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the blocks that the architecture says must not be split, in the order of the forward pass."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _load_model(job: TrainJob) -> PreTrainedModel:
    assert job.model is not None
    _check_directory(job.model, "model")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            job.model,
            revision=job.revision,
            trust_remote_code=job.trust_remote_code,
            dtype=torch.float32,
            use_safetensors=True,  # pickled weights can run code
            attn_implementation="sdpa",
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load student.model {job.model!r}: {_first_line(error)}") from error
    assert isinstance(model, PreTrainedModel)
    return model


def _initialise_model(job: TrainJob, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    assert job.init is not None
    model_type, arguments = job.init["model_type"], job.init.get("arguments", {})
    config = _build_model_config(
        model_type,
        arguments
        | {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.training.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    assert isinstance(model, PreTrainedModel)
    return model


def _build_model_config(model_type: str, arguments: dict[str, Any]) -> Any:
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise UserError(f"student.init.model_type {model_type!r} is no model type of transformers") from error
    for key in arguments:
        # transformers keeps unknown arguments silently, and a mistyped size would mean a model of billions.
        if not hasattr(known, key):
            near = difflib.get_close_matches(key, known.to_dict(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"student.init.arguments.{key} is no argument of a {model_type} configuration{hint}")
    return AutoConfig.for_model(model_type, **arguments)


def _check_model(model: PreTrainedModel, job: TrainJob, tokenizer: PreTrainedTokenizerBase) -> None:
    config, length = model.config.get_text_config(), job.training.sequence_length
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and context < length:
        raise UserError(
            f"training.sequence_length ({length}) must not exceed the student's context of {context} tokens "
            f"(max_position_embeddings); set training.sequence_length={context} or take another student"
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    if vocabulary < len(tokenizer):
        raise UserError(
            f"the student's vocabulary ({vocabulary}) is smaller than that of the tokenizer {job.tokenizer!r} "
            f"({len(tokenizer)}); give the student the tokenizer it was made with (student.transfer=text)"
        )
    for key, neutral in _LOGIT_TRANSFORMS.items():
        if getattr(config, key, neutral) not in (None, neutral):
            raise UserError(f"students whose configuration sets {key} are not supported; take another student.model")


def _check_directory(path: str, what: str) -> None:
    looks_local = path.startswith(("/", "./", "../", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise UserError(f"the {what} directory {path!r} does not exist; give an existing directory or OWNER/NAME")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
