"""What a model's ``config.json`` says of its size and its layers, without loading anything."""

import json
from dataclasses import dataclass
from typing import Any

from cluster.terms_sources import local_directory
from configs.schema import TinyModelConfig

ASSUMED_VOCABULARY = 64  # of a home-made tokenizer of characters; matters for models of that size alone
TIED_BY_DEFAULT = ("gemma", "gpt2", "cohere")  # whose files do not say so
BYTES_BY_DTYPE = {"float32": 4.0, "float": 4.0, "float16": 2.0, "half": 2.0, "bfloat16": 2.0, "auto": 2.0}
BYTES_BY_QUANTIZATION = {"fp8": 1.0, "compressed-tensors": 1.0, "mxfp4": 0.55, "awq": 0.55, "gptq": 0.55}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder's sizes. ``mlp_matrices`` is 3 for a gated MLP and 2 for a plain one.

    ``ModelShape(hidden=4096, layers=32, heads=32, kv_heads=8, head_size=128, mlp=14336, vocabulary=128256)`` is Llama 3
    8B, 8.03 billion weights.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    vocabulary: int
    is_tied: bool = False
    mlp_matrices: int = 3
    experts: int = 1
    experts_per_token: int = 1
    stored_bytes: float | None = None
    """Bytes of a weight where the files are quantised."""
    has_head_norms: bool = False
    """Whether queries and keys are normalised head by head, as in Qwen3."""
    has_norm_kernel: bool = False
    """Whether norms are torch's own LayerNorm; RMSNorms are written out in Python."""
    mlp_tensors: int = 4
    """Tensors of the MLP's size that one keeps: gate, its activation, up and their product."""
    has_dropout: bool = False
    """Whether embeddings, attention's output and the MLP's output lose some of their numbers."""
    has_attention_dropout: bool = False
    has_flex: bool = True
    """Whether transformers has FlexAttention for it."""

    @property
    def layer_weights(self) -> int:
        """Weights of one layer."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        router = self.hidden * self.experts if self.experts > 1 else 0
        return attention + router + self.experts * self._expert_weights + 2 * self.hidden

    @property
    def weights(self) -> int:
        """All of them; norms and biases count as little as they are."""
        return self.layers * self.layer_weights + self.embedding_weights * (1 if self.is_tied else 2) + self.hidden

    @property
    def active_weights(self) -> int:
        """Those that a token is multiplied with: of a mixture of experts, the experts that it goes to."""
        idle = (self.experts - self.experts_per_token) * self._expert_weights
        return self.layers * (self.layer_weights - idle) + self.embedding_weights

    @property
    def embedding_weights(self) -> int:
        """Of the input, and of the output matrix."""
        return self.vocabulary * self.hidden

    @property
    def _expert_weights(self) -> int:
        return self.mlp_matrices * self.hidden * self.mlp

    def cache_bytes_per_token(self, bytes_each: float = 2.0) -> float:
        """Keys and values of one token in all layers; of layers with a sliding window an upper bound."""
        return 2 * self.layers * self.kv_heads * self.head_size * bytes_each


def shape_of_repository(model: str, revision: str | None) -> ModelShape | None:
    """Of a directory, or of a repository in the Hub's cache; None where neither is here or the sizes are not known."""
    directory = local_directory(model, revision)
    if directory is None or not (directory / "config.json").is_file():
        return None
    return read_shape(json.loads((directory / "config.json").read_text(encoding="utf-8")))


def shape_of_init(init: TinyModelConfig) -> ModelShape | None:
    """Of a model from random weights; its vocabulary is that of the teacher, and assumed to be small."""
    return read_shape({"vocab_size": ASSUMED_VOCABULARY, "model_type": init.model_type} | init.arguments)


def read_shape(config: dict[str, Any]) -> ModelShape | None:
    """From the keys that transformers' configurations have in common; None when they are others."""
    config = config | config.get("text_config", {})
    hidden, layers, heads = _first(config, _HIDDEN), _first(config, _LAYERS), _first(config, _HEADS)
    if not hidden or not layers or not heads or "kv_lora_rank" in config:  # latent attention has other matrices
        return None
    kind = str(config.get("model_type", ""))
    is_gpt2 = kind == "gpt2"
    usual_dropout = 0.1 if is_gpt2 else 0.0  # where the file does not say
    mlp = _first(config, ("moe_intermediate_size", "intermediate_size", "n_inner")) or 4 * hidden
    experts = _first(config, ("num_local_experts", "num_experts")) or 1
    stored = config.get("quantization_config") or {}
    return ModelShape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=_first(config, ("num_key_value_heads",)) or heads,
        head_size=_first(config, ("head_dim",)) or hidden // heads,
        mlp=mlp,
        vocabulary=config.get("vocab_size", ASSUMED_VOCABULARY),
        is_tied=config.get("tie_word_embeddings", kind.startswith(TIED_BY_DEFAULT)),
        mlp_matrices=2 if is_gpt2 else 3,
        experts=experts,
        experts_per_token=_first(config, ("num_experts_per_tok", "experts_per_token")) or 1,
        stored_bytes=BYTES_BY_QUANTIZATION.get(stored.get("quant_method", "")),
        has_head_norms=kind.startswith("qwen3"),
        has_norm_kernel=is_gpt2,
        # GPT-2's own GELU is a formula of five steps, any other a kernel that keeps its input.
        mlp_tensors=(5 if config.get("activation_function", "gelu_new") == "gelu_new" else 2) if is_gpt2 else 4,
        has_dropout=config.get("resid_pdrop", usual_dropout) > 0,
        has_attention_dropout=config.get("attn_pdrop", config.get("attention_dropout", usual_dropout)) > 0,
        has_flex=not is_gpt2,
    )


_HIDDEN = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer")
_HEADS = ("num_attention_heads", "n_head")


def _first(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((config[key] for key in keys if config.get(key)), None)
