"""Students of random weights: speed does not depend on what they say. One architecture at all sizes, Qwen3's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 0
END = 2  # id of the tokenizer's end of turn
SPECIAL = 3  # ids from here on are no special tokens
FIRST_CHARACTER = 0x4E00  # of the tokenizer's, one a token; more follow than the shapes of a CPU have tokens


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen3; the head's part of a token's work is a fifth to a quarter, as it is in the 0.6b."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    is_tied: bool = True

    def num_parameters(self) -> int:
        """Parameters of all matrices, with a tied embedding counted once."""
        return self.num_layer_parameters() * self.layers + self.head_parameters() * (1 if self.is_tied else 2)

    def num_layer_parameters(self) -> int:
        """Parameters of the matrices of one decoder layer."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.feed_forward

    def head_parameters(self) -> int:
        """Parameters of the map from hidden states to logits."""
        return self.hidden * self.vocabulary

    def model_arguments(self, context: int) -> dict[str, Any]:
        """Arguments of the transformers configuration, without token ids."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.is_tied,
            "max_position_embeddings": context,
        }


SHAPES = {
    "tiny": Shape(64, 192, 2, 2, 1, 32, 512),
    "5m": Shape(256, 768, 4, 4, 2, 64, 4096),
    "29m": Shape(512, 1536, 8, 8, 4, 64, 8192),
    "80m": Shape(512, 1536, 24, 8, 4, 64, 8192),  # deep, as large students are: the head is 5 % of it, in the 8b 8 %
    "0.6b": Shape(1024, 3072, 28, 16, 8, 128, 151_936),
    "8b": Shape(4096, 12_288, 36, 32, 8, 128, 151_936, is_tied=False),
}


def build_random_model(shape: Shape, context: int) -> Any:
    """Return the model in float32 on the CPU, the same every time."""
    import torch  # heavy, and the driver does without
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(**shape.model_arguments(context), bos_token_id=1, eos_token_id=END, pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def save_model(shape: Shape, context: int, target: Path) -> str:
    """Write model and tokenizer to ``target`` and return it; rows are token ids, so any tokenizer of its size does."""
    from training.tokenizer import build_character_tokenizer

    build_random_model(shape, context).save_pretrained(target)
    characters = map(chr, range(FIRST_CHARACTER, FIRST_CHARACTER + shape.vocabulary - SPECIAL))
    build_character_tokenizer("".join(characters)).save_pretrained(target)
    return str(target)
