"""Turns a prompt into the teacher's token ids, and the teacher's token ids into text."""

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

    def render(self, prompt: str | list[dict[str, Any]]) -> list[int]:
        """Token ids up to where the assistant's answer begins. Raises `ValueError` when the template refuses it."""
        from jinja2.exceptions import TemplateError

        if isinstance(prompt, str):
            if not self.has_chat_template:
                return list(self.tokenizer(prompt)["input_ids"])
            prompt = [{"role": "user", "content": prompt}]
        if not self.has_chat_template:
            raise ValueError("the tokenizer has no chat template, which a list of messages needs")
        try:
            rendered = self.tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **self.template_kwargs
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise ValueError(str(error)) from error
        return list(rendered["input_ids"])

    def decode(self, token_ids: list[int]) -> str:
        """Text of a completion, without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))
