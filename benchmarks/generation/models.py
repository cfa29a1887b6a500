"""Models of random weights, made on the spot: speed does not depend on what they say, and they never stop."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.generation.workloads import CHARACTERS

CONTEXT_TOKENS = 2048
VOCABULARY = 1024  # more than the tokenizer's characters; what it does not know, it decodes to nothing
SEED = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama. Heads are of 64, since vLLM's CPU backend has no kernel for every size."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int


SHAPES = {
    "4m": Shape(hidden=256, feed_forward=768, layers=4, heads=4, kv_heads=4),
    "27m": Shape(hidden=512, feed_forward=1536, layers=8, heads=8, kv_heads=4),
    "135m": Shape(hidden=576, feed_forward=1536, layers=38, heads=9, kv_heads=3),
}


def make_model(name: str, directory: Path) -> str:
    """Write the model and its tokenizer to ``directory / name``; returns that path."""
    import torch  # heavy, and only whoever makes a model needs it
    from transformers import LlamaConfig, LlamaForCausalLM

    from training.tokenizer import build_character_tokenizer

    shape, target = SHAPES[name], directory / name
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config).to(torch.float32)
    model.generation_config.eos_token_id = None
    model.save_pretrained(target)
    tokenizer = build_character_tokenizer(CHARACTERS)
    tokenizer.eos_token = None  # vLLM stops at the tokenizer's, whatever the model says
    tokenizer.save_pretrained(target)
    return str(target)
