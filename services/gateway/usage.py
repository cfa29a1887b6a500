"""Counts what an answer has used so far, from what the engine says in each piece of it."""

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class UsageCount:
    """Tokens by choice, as a stream may be left at any piece; the engine's own total counts where it came."""

    stream: bool
    _prompt: int | None = None
    _completions: dict[int, int] = field(default_factory=dict)
    _total: int | None = None
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, piece: dict[str, Any]) -> None:
        """A whole answer, or a piece of a stream."""
        choices, usage = piece.get("choices") or [], piece.get("usage")
        for choice in choices:
            part = choice.get("delta") or choice.get("message") or {}
            self._digest.update((part.get("content") or choice.get("text") or "").encode(errors="surrogatepass"))
        if usage is None:
            return
        if not self.stream or not choices:
            self._total = usage["total_tokens"]
            return
        self._prompt = usage["prompt_tokens"]
        for choice in choices:
            self._completions[choice["index"]] = usage["completion_tokens"]

    @property
    def total(self) -> int | None:
        """Tokens of prompt and completions; None where the engine has said nothing."""
        if self._total is not None:
            return self._total
        return None if self._prompt is None else self._prompt + sum(self._completions.values())

    @property
    def completion_sha256(self) -> str:
        """Of the answers' texts, in the order in which they came."""
        return str(self._digest.hexdigest())
