"""What a client may ask for: known parameters alone reach the teacher, within the caps.

Stripping is by an allow-list, so a parameter that the engine learns tomorrow is stripped as well. Content other than
text is refused: the engine would fetch its addresses.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from configs.gateway import CapsConfig
from services.gateway.refusals import Refusal

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MAX_STOPS = 4  # as OpenAI has it

Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class TextPart(_Part):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Part):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """Its content as one text."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class StreamOptions(_Part):
    """What a stream has beside its pieces."""

    include_usage: bool = False


class _Sampling(_Part):
    model: str
    n: PositiveInt = 1
    max_tokens: PositiveInt | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None


class ChatRequest(_Sampling):
    """The parameters of a chat completion that pass."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None


class CompletionRequest(_Sampling):
    """The parameters of a plain completion that pass; a list of prompts, or of token ids, does not."""

    prompt: Annotated[str, Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the teacher gets it: ``body`` is safe to pass on, ``max_tokens`` what each of ``n`` may come to."""

    path: str
    body: dict[str, Any]
    model: str
    n: int
    max_tokens: int
    stream: bool
    include_usage: bool
    stripped: tuple[str, ...]
    prompt: str  # the last that the user says, for signals
    prompt_sha256: str


def read_request(path: str, content: bytes, caps: CapsConfig) -> Asked | Refusal:
    """Parse, strip and check a body; a `Refusal` names the parameter that breaks a rule."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        return Refusal(400, "invalid_json", f"the body is not JSON: {error}")
    if not isinstance(tree, dict):
        return Refusal(400, "invalid_json", "the body must be a JSON object")
    try:
        json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        # JSON may escape half of a surrogate pair, which no log, header or answer could be written with.
        message = "the body has text that UTF-8 cannot hold, such as a lone surrogate (\\ud800); send whole characters"
        return Refusal(400, "invalid_json", message)
    try:
        request = (ChatRequest if path == CHAT else CompletionRequest).model_validate(tree)
    except ValidationError as error:
        return _explain(error)
    if (refusal := _check_caps(request, caps)) is not None:
        return refusal
    return _to_asked(path, tree, request, caps)


def _check_caps(request: ChatRequest | CompletionRequest, caps: CapsConfig) -> Refusal | None:
    asked = {"n": (request.n, caps.n), "max_tokens": (request.max_tokens or 0, caps.max_tokens)}
    if isinstance(request, ChatRequest):
        asked["max_completion_tokens"] = (request.max_completion_tokens or 0, caps.max_tokens)
        asked["top_logprobs"] = (request.top_logprobs or 0, caps.top_logprobs)
        if request.logprobs and not caps.top_logprobs:
            return Refusal(400, "above_cap", "logprobs are not given out here", "logprobs")
        if request.top_logprobs and not request.logprobs:
            return Refusal(400, "invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
    else:
        if request.logprobs is not None and not caps.top_logprobs:  # to the engine, 0 asks for the token's own
            return Refusal(400, "above_cap", "logprobs are not given out here", "logprobs")
        asked["logprobs"] = (request.logprobs or 0, caps.top_logprobs)
    for name, (value, most) in asked.items():
        if value > most:
            return Refusal(400, "above_cap", f"{name} may be at most {most} here, not {value}", name)
    return None


def _to_asked(path: str, tree: dict[str, Any], request: ChatRequest | CompletionRequest, caps: CapsConfig) -> Asked:
    body = request.model_dump(exclude_unset=True, exclude_none=True)
    if isinstance(request, ChatRequest):
        max_tokens = request.max_completion_tokens or request.max_tokens or caps.max_tokens
        body.pop("max_completion_tokens", None)
        body["messages"] = [each.model_dump(exclude_none=True) | {"content": each.text} for each in request.messages]
        prompt = next((each.text for each in reversed(request.messages) if each.role == "user"), "")
        whole = json.dumps(body["messages"], ensure_ascii=False)
    else:
        max_tokens = request.max_tokens or caps.max_tokens
        prompt = whole = request.prompt
    body["max_tokens"] = max_tokens
    include_usage = request.stream_options is not None and request.stream_options.include_usage
    body.pop("stream_options", None)
    if request.stream:
        # The usage so far in every piece: a client may leave at any of them.
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return Asked(
        path=path,
        body=body,
        model=request.model,
        n=request.n,
        max_tokens=max_tokens,
        stream=request.stream,
        include_usage=include_usage,
        stripped=tuple(sorted(tree.keys() - type(request).model_fields.keys())),
        prompt=prompt,
        prompt_sha256=hashlib.sha256(whole.encode()).hexdigest(),
    )


def _explain(error: ValidationError) -> Refusal:
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return Refusal(400, "missing_parameter", f"{param} is required", param)
    return Refusal(400, "invalid_value", f"{param}: {first['msg']}", param)
