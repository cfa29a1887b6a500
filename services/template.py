"""Turns a prompt into the teacher's token ids, and the teacher's token ids into text."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import UserError


@dataclass(frozen=True, slots=True)
class PromptRenderer:
    """A tokenizer with its chat template.

    A plain string becomes one user message where the tokenizer has a chat template, and stays raw text where it has
    none (a base model); a list of messages needs a template.
    """

    tokenizer: Any
    template_kwargs: dict[str, Any]

    @classmethod
    def load(
        cls, source: str, revision: str | None, template_kwargs: dict[str, Any], trust_remote_code: bool
    ) -> "PromptRenderer":
        """Load from a local directory or a Hub repository. Raises `UserError` when there is no tokenizer."""
        from transformers import AutoTokenizer  # imports torch; only what really renders pays for it

        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise UserError(f"no tokenizer can be loaded from {source}: {error}") from error
        return cls(tokenizer, template_kwargs)

    @property
    def has_chat_template(self) -> bool:
        return self.tokenizer.chat_template is not None

    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over the chat template and its arguments."""
        deciding = json.dumps([self.tokenizer.chat_template, self.template_kwargs], sort_keys=True, default=str)
        return hashlib.sha256(deciding.encode()).hexdigest()[:16]

    def render(self, prompts: Sequence[str | list[dict[str, Any]]]) -> list[list[int] | ValueError]:
        """Of each prompt the token ids up to where the assistant's answer begins, or why the template refuses it.

        All of them are tokenised together, which costs a fifth of one after the other.
        """
        texts = [self._to_text(prompt) for prompt in prompts]
        good = [text for text in texts if isinstance(text, str)]
        # A template writes the special tokens itself.
        encoded = self.tokenizer(good, add_special_tokens=not self.has_chat_template)["input_ids"] if good else []
        token_ids = iter(encoded)
        return [next(token_ids) if isinstance(text, str) else text for text in texts]

    def decode(self, completions: Sequence[list[int]]) -> list[str]:
        """Texts of completions, without special tokens."""
        return list(self.tokenizer.batch_decode(completions, skip_special_tokens=True))

    def _to_text(self, prompt: str | list[dict[str, Any]]) -> str | ValueError:
        from jinja2.exceptions import TemplateError

        if isinstance(prompt, str):
            if not self.has_chat_template:
                return prompt
            prompt = [{"role": "user", "content": prompt}]
        if not self.has_chat_template:
            return ValueError("the tokenizer has no chat template, which a list of messages needs")
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    prompt, add_generation_prompt=True, tokenize=False, **self.template_kwargs
                )
            )
        except (TemplateError, TypeError, KeyError) as error:
            return ValueError(str(error))
