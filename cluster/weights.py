"""How many weights a model computes with, read from the headers of its safetensors files: no tensor is loaded.

Counted as `training.flops` counts them: matrices of the layers, of a mixture of experts those that a token goes to,
and the output matrix by itself, because only some tokens need it. Embeddings are looked up, not multiplied with.
"""

import json
import math
import posixpath
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

_HEADER_LENGTH = struct.Struct("<Q")  # of the safetensors format
_OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out)\.")
_LOOKUP = re.compile(r"embed|(^|\.)w[tp]e\.")
_INPUT = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in)\.")
_EXPERT = re.compile(r"\.experts\.")
# What holds several weights in one number or none at all: mxfp4 packs two to a byte, other packings are not known.
_BLOCKS, _SCALES, _PACKED = "_blocks", "_scales", ("qweight", "weight_packed")


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that a token is multiplied with: ``body`` every token, ``head`` those whose next token is asked for."""

    body: int
    head: int

    @property
    def total(self) -> int:
        return self.body + self.head


def count_weights(directory: str) -> Weights | None:
    """The weights of a Hugging Face directory on any fsspec URI; None where they cannot be told.

    That is where there are no safetensors files, or where they are packed in a way that the header does not explain.
    """
    filesystem, path = fsspec.url_to_fs(directory)
    try:
        config = json.loads(filesystem.cat_file(posixpath.join(path, "config.json")))
    except FileNotFoundError:
        return None
    shapes = dict(_read_shapes(filesystem, path))
    if not shapes or any(name.endswith(_PACKED) for name in shapes):
        return None
    part = _active_part(config.get("text_config") or config)
    body = sum(
        math.prod(shape) * (part if _EXPERT.search(name) else 1.0)
        for name, shape in shapes.items()
        if len(shape) >= 2 and not _OUTPUT.search(name) and not _LOOKUP.search(name)
    )
    own = [math.prod(shape) for name, shape in shapes.items() if _OUTPUT.search(name) and len(shape) == 2]
    shared = [math.prod(shape) for name, shape in shapes.items() if _INPUT.search(name)]
    return Weights(round(body), max(own or shared, default=0))


def _read_shapes(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[str, list[int]]]:
    for file in sorted(filesystem.glob(posixpath.join(path, "*.safetensors"))):
        with filesystem.open(file, "rb") as opened:
            (length,) = _HEADER_LENGTH.unpack(opened.read(_HEADER_LENGTH.size))
            header: dict[str, Any] = json.loads(opened.read(length))
        for name, tensor in header.items():
            if name != "__metadata__" and not name.endswith(_SCALES):
                shape = tensor["shape"]
                yield name, [*shape, 2] if name.endswith(_BLOCKS) and tensor["dtype"] == "U8" else shape


def _active_part(config: dict[str, Any]) -> float:
    num_experts = config.get("num_local_experts") or config.get("num_experts")
    chosen = config.get("num_experts_per_tok")
    return chosen / num_experts if num_experts and chosen else 1.0
