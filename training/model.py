"""Builds the student, from a Hugging Face checkpoint or from random weights, and says where its parts are."""

import difflib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from configs.errors import UserError
from configs.schema import Attention
from training.job import JobDevice, TrainJob
from training.loss import LogitTransform

# Relative to the logits' spread; float32 sums in another order differ by about 1e-6 of it.
_PROBE_TOLERANCE = 1e-3

# Columns of a head from which torch's kernel takes it on a GPU.
_MIN_FLEX_HEAD = 16


def load_tokenizer(path: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a directory or Hub repository; UserError names what is missing."""
    check_directory(path, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the tokenizer {path!r}: {_first_line(error)}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def build_model(job: TrainJob, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the student in float32 on the CPU, set up as `load_model` and `set_computation` do."""
    model = load_model(job, tokenizer)
    set_computation(model, job)
    return model


def load_model(job: TrainJob, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the student's weights in float32 on the CPU, the same on every rank.

    UserError names the key when the checkpoint is missing, when its context is shorter than
    ``training.sequence_length`` or its vocabulary smaller than the tokenizer's.
    """
    if (job.model is None) == (job.init is None):
        raise UserError("set exactly one of student.model (weights to start from) and student.init (random weights)")
    model = _read_model(job) if job.model is not None else _initialise_model(job, tokenizer)
    _check_model(model, job, tokenizer)
    if _has_softcap(model):
        model.set_attn_implementation(Attention.EAGER)  # sdpa, transformers' own choice, would leave the cap out
    _probe_packing(model)
    return model


def set_computation(model: PreTrainedModel, job: TrainJob) -> None:
    """Choose how the student attends and what it computes twice; UserError where the student cannot."""
    _set_attention(model, job)
    _set_recomputation(model, job.training.activation_checkpointing)


def _has_softcap(model: PreTrainedModel) -> bool:
    return getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None


def _set_recomputation(model: PreTrainedModel, policy: str) -> None:
    if policy == "none":
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    every = int(policy.rpartition("-")[2]) if policy.startswith("selective") else 1
    for place, layer in enumerate(find_decoder_layers(model)):
        if place % every:
            setattr(layer, "gradient_checkpointing", False)  # noqa: B010 # torch types a module's attributes as tensors


def find_decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the blocks that the architecture says must not be split, in the order of the forward pass."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _read_model(job: TrainJob) -> PreTrainedModel:
    assert job.model is not None
    check_directory(job.model, "model")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            job.model,
            revision=job.revision,
            trust_remote_code=job.trust_remote_code,
            dtype=torch.float32,
            use_safetensors=True,  # pickled weights can run code
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
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
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


@torch.no_grad()
def _probe_packing(model: PreTrainedModel) -> None:
    """Compare a packed row's logits, as the loss computes them, with the model's own logits of the row alone.

    A model that carries state from one packed row into the next (recurrent layers, positions it counts itself), or
    that does something else to its logits, would train on wrong losses without any sign of it.
    """
    is_training = model.training
    model.eval()
    hidden_BTD = model.base_model(
        input_ids=torch.tensor([[3, 1, 4, 1, 2]]),
        position_ids=torch.tensor([[0, 1, 2, 0, 1]]),
        attention_mask=None,
        use_cache=False,
    ).last_hidden_state
    head = model.get_output_embeddings()
    ours = LogitTransform.of(model.config.get_text_config())(head(hidden_BTD[:, 3:]))
    theirs = model(input_ids=torch.tensor([[1, 2]]), use_cache=False).logits
    model.train(is_training)
    if (ours - theirs).abs().max() > _PROBE_TOLERANCE * theirs.abs().max().clamp(min=1e-3):
        raise UserError(
            f"a student of type {model.config.model_type} cannot be trained on packed rows: its logits for a row "
            "change with the rows before it, or are not what its output matrix gives; take another student.model"
        )


def _set_attention(model: PreTrainedModel, job: TrainJob) -> None:
    """Set the attention of training, which ``auto`` leaves as it is on a CPU."""
    chosen, is_gpu = job.training.attention, job.device is JobDevice.GPU
    if chosen is Attention.AUTO:
        if is_gpu and model._supports_flex_attn and _find_flex_obstacle(model) is None:
            model.set_attn_implementation(Attention.FLEX)
        return
    if chosen is Attention.SDPA and _has_softcap(model):
        raise UserError("training.attention=sdpa would leave out the student's attention soft cap; set it to auto")
    if chosen is Attention.FLEX and not is_gpu:
        raise UserError("training.attention=flex_attention needs student.device=gpu; set training.attention=auto")
    if chosen is Attention.FLEX and (obstacle := _find_flex_obstacle(model)) is not None:
        raise UserError(f"training.attention=flex_attention cannot be had with {obstacle}; set training.attention=auto")
    try:
        model.set_attn_implementation(chosen)
    except ValueError as error:
        raise UserError(
            f"training.attention={chosen} cannot be had for a student of type {model.config.model_type}; set "
            f"training.attention=auto ({_first_line(error)})"
        ) from error


def _find_flex_obstacle(model: PreTrainedModel) -> str | None:
    """Return what of the student FlexAttention would refuse, though only when it is run; None where it takes it."""
    config = model.config.get_text_config()
    for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob"):
        if dropout := getattr(config, name, None):
            return f"the student's {name} of {dropout}"
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return f"heads of {size} (fewer than {_MIN_FLEX_HEAD})" if size < _MIN_FLEX_HEAD else None


def check_directory(path: str, what: str) -> None:
    """Raise UserError when ``path`` looks like a directory and is none; ``what`` says what of."""
    looks_local = path.startswith(("/", "./", "../", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise UserError(f"the {what} directory {path!r} does not exist; give an existing directory or OWNER/NAME")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
