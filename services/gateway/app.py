"""The HTTP side: OpenAI's paths, errors in OpenAI's shape, streams. It holds no state and decides nothing."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from configs.gateway import GatewayConfig
from configs.watermark import WatermarkKind, WatermarkScheme
from services.gateway.admission import Grant, Visit
from services.gateway.refusals import Refusal
from services.gateway.regions import find_origin
from services.gateway.requests import CHAT, COMPLETIONS, Asked, read_request
from services.gateway.usage import UsageCount
from services.requester import Fault, classify

BUSY_RETRY_S = 5
SEEDS = 1 << 31
STRIPPED_HEADER = "X-Stripped-Parameters"
COMPLETED, CANCELLED, REFUSED, FAULT = "completed", "cancelled", "refused_by_teacher", "teacher_fault"

T = TypeVar("T")


class Doorkeeper(Protocol):
    """`services.gateway.admission.Admission`, wherever it runs."""

    async def admit(self, secret: str | None, visit: Visit) -> Refusal | None: ...
    async def reserve(self, secret: str, visit: Visit, prompt_tokens: int) -> Grant | Refusal: ...
    async def settle(self, grant: Grant, used: int | None, outcome: str, completion_sha256: str) -> None: ...
    async def accept_terms(self, secret: str | None, visit: Visit, terms_sha256: str) -> Refusal | None: ...
    async def list_models(self, secret: str | None, visit: Visit) -> list[str] | Refusal: ...


class Answerer(Protocol):
    """The teacher, wherever it runs. Bodies and answers are OpenAI's; an answer with ``error`` is a refusal."""

    async def count_prompt_tokens(self, path: str, body: dict[str, Any]) -> int | dict[str, Any]: ...

    def answer(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """What the HTTP side needs to know; ``template_kwargs`` are the recipe's, which no client may choose.

    ``watermark`` is how the teacher marks what it draws, None where it does not.
    """

    config: GatewayConfig
    model: str
    template_kwargs: dict[str, Any]
    request_deadline_s: float
    terms: str | None = None
    watermark: WatermarkScheme | None = None


def build_app(spec: GatewaySpec, doorkeeper: Doorkeeper, teacher: Answerer) -> Starlette:
    """The ASGI application."""
    gateway = _Gateway(spec, doorkeeper, teacher)
    routes = [
        Route("/v1/models", gateway.models, methods=["GET"]),
        Route("/v1/models/{model:path}", gateway.model, methods=["GET"]),
        Route(CHAT, gateway.complete, methods=["POST"]),
        Route(COMPLETIONS, gateway.complete, methods=["POST"]),
        Route("/terms", gateway.terms, methods=["GET"]),
        Route("/terms/accept", gateway.accept_terms, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        HTTPException: _to_json,
        _Refused: _to_refusal,
        ClientDisconnect: _to_nobody,
        Exception: _to_fault,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _Gateway:
    def __init__(self, spec: GatewaySpec, doorkeeper: Doorkeeper, teacher: Answerer) -> None:
        self._spec, self._doorkeeper, self._teacher = spec, doorkeeper, teacher
        self._under_way: set[asyncio.Task[Any]] = set()

    async def models(self, request: Request) -> Response:
        found = await self._doorkeeper.list_models(_secret(request), self._visit(request))
        if isinstance(found, Refusal):
            return _refused(found)
        return JSONResponse({"object": "list", "data": [_card(each) for each in found]})

    async def model(self, request: Request) -> Response:
        visit = replace(self._visit(request), model=request.path_params["model"])
        refusal = await self._doorkeeper.admit(_secret(request), visit)
        return _refused(refusal) if refusal else JSONResponse(_card(visit.model))

    async def terms(self, request: Request) -> Response:
        """For everyone: what is to be accepted has to be readable before."""
        if self._spec.terms is None:
            return _refused(Refusal(404, "no_terms", "this service has no terms of its own"))
        digest = hashlib.sha256(self._spec.terms.encode()).hexdigest()
        return PlainTextResponse(self._spec.terms, headers={"X-Terms-SHA256": digest})

    async def accept_terms(self, request: Request) -> Response:
        try:
            body = json.loads(await self._read(request))
        except ValueError:
            body = None
        digest = body.get("sha256") if isinstance(body, dict) else None
        if not isinstance(digest, str):
            return _refused(Refusal(400, "missing_parameter", "send the terms' digest as sha256", "sha256"))
        refusal = await self._doorkeeper.accept_terms(_secret(request), self._visit(request), digest)
        return _refused(refusal) if refusal else JSONResponse({"accepted": digest})

    async def complete(self, request: Request) -> Response:
        secret, content = _secret(request), await self._read(request)
        asked = read_request(request.url.path, content, self._spec.config.caps)
        if isinstance(asked, Refusal):  # but a stranger is told nothing of it
            refusal = await self._doorkeeper.admit(secret, self._visit(request))
            return _refused(refusal or asked)
        visit = self._visit(request, asked)
        if (refusal := await self._doorkeeper.admit(secret, visit)) is not None:
            return _refused(refusal)
        body = dict(asked.body)
        if (mark := self._spec.watermark) is not None:
            if (refusal := _check_samples(asked.n, mark)) is not None:
                return _refused(refusal)
            # Rows without a seed all have the first channel; samples of a request have seeds in a row from this one.
            body.setdefault("seed", secrets.randbelow(SEEDS))
        if asked.path == CHAT and self._spec.template_kwargs:
            body["chat_template_kwargs"] = self._spec.template_kwargs
        prompt_tokens = await self._count_prompt(asked.path, body)
        grant = await self._reserve(secret or "", visit, prompt_tokens)
        if isinstance(grant, Refusal):
            return _refused(grant)
        return await self._answer(asked, body, grant)

    async def _answer(self, asked: Asked, body: dict[str, Any], grant: Grant) -> Response:
        headers = {STRIPPED_HEADER: ",".join(asked.stripped)} if _is_header(asked.stripped) else {}
        count = UsageCount(asked.stream)
        pieces = self._pieces(asked, body, grant, count)
        first = await anext(pieces)  # so that a refusal still has a status of its own
        if "error" in first:
            await pieces.aclose()
            return _refused(_from_teacher(first["error"]))
        if not asked.stream:
            await pieces.aclose()
            return JSONResponse(first, headers=headers)
        stream = _to_events(first, pieces, include_usage=asked.include_usage)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    async def _pieces(
        self, asked: Asked, body: dict[str, Any], grant: Grant, count: UsageCount
    ) -> AsyncGenerator[dict[str, Any]]:
        """The teacher's answer, piece by piece; the reservation is settled however it ends, the client's leave too."""
        outcome = CANCELLED
        try:
            async for piece in _until(self._teacher.answer(asked.path, body), self._spec.request_deadline_s):
                count.add(piece)
                if "error" in piece:
                    outcome = REFUSED
                elif not asked.stream:
                    outcome = COMPLETED
                yield piece
            outcome = COMPLETED if outcome == CANCELLED else outcome
        except Exception as error:
            outcome = FAULT
            refusal = _to_teacher_fault(error)
            yield refusal.body | {"error": {**refusal.body["error"], "status": refusal.status}}
        finally:
            # A client who leaves before anything is known pays for all of it; what the teacher spoils costs nothing.
            used = (count.total or 0) if outcome in (REFUSED, FAULT) else count.total
            await asyncio.shield(self._start(self._doorkeeper.settle(grant, used, outcome, count.completion_sha256)))

    async def _reserve(self, secret: str, visit: Visit, prompt_tokens: int) -> Grant | Refusal:
        """A client who leaves meanwhile is charged nothing: the teacher has not been asked."""
        reserving = self._start(self._doorkeeper.reserve(secret, visit, prompt_tokens))
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            self._start(self._give_back(reserving))
            raise

    async def _give_back(self, reserving: asyncio.Task[Grant | Refusal]) -> None:
        grant = await reserving
        if isinstance(grant, Grant):
            await self._doorkeeper.settle(grant, 0, CANCELLED, "")

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """What has to end although its client has left."""
        task = asyncio.create_task(work)
        self._under_way.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._under_way.discard)
        return task

    async def _count_prompt(self, path: str, body: dict[str, Any]) -> int:
        try:
            async with asyncio.timeout(self._spec.request_deadline_s):
                counted = await self._teacher.count_prompt_tokens(path, body)
        except Exception as error:
            raise _Refused(_to_teacher_fault(error)) from error
        if isinstance(counted, dict):
            raise _Refused(_from_teacher(counted["error"]))
        return counted

    async def _read(self, request: Request) -> bytes:
        limit, content = self._spec.config.caps.body_kib * 1024, bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > limit:
                message = f"the body may have at most {self._spec.config.caps.body_kib} KiB"
                raise _Refused(Refusal(413, "body_too_large", message))
        return bytes(content)

    def _visit(self, request: Request, asked: Asked | None = None) -> Visit:
        config = self._spec.config
        peer = request.client.host if request.client else ""
        # A header may come in several lines, of which a proxy has written the last.
        headers = {name: ",".join(request.headers.getlist(name)) for name in request.headers}
        origin = find_origin(peer, headers, config.trusted_proxies, config.regions.header)
        if asked is None:
            return Visit(origin, request.url.path)
        return Visit(
            origin=origin,
            path=asked.path,
            model=asked.model,
            n=asked.n,
            max_tokens=asked.max_tokens,
            stripped=asked.stripped,
            prompt=asked.prompt,
            prompt_sha256=asked.prompt_sha256,
        )


async def _until(pieces: AsyncIterator[dict[str, Any]], deadline_s: float) -> AsyncIterator[dict[str, Any]]:
    """The pieces, all of which must have come after ``deadline_s``. Not one timeout around: tasks change in between."""
    give_up_at = asyncio.get_running_loop().time() + deadline_s
    while True:
        left_s = give_up_at - asyncio.get_running_loop().time()
        try:
            yield await asyncio.wait_for(anext(pieces), max(0.0, left_s))
        except StopAsyncIteration:
            return


async def _to_events(
    first: dict[str, Any], pieces: AsyncGenerator[dict[str, Any]], *, include_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events; the usage that the gateway counts by is shown only where the client asked for it."""
    try:
        if (event := _to_event(first, include_usage)) is not None:
            yield event
        async for piece in pieces:
            if (event := _to_event(piece, include_usage)) is not None:
                yield event
            if "error" in piece:
                return
        yield "data: [DONE]\n\n"
    finally:
        await pieces.aclose()  # settles, also when the client has left


def _to_event(piece: dict[str, Any], include_usage: bool) -> str | None:
    if "error" not in piece:
        is_total = not piece.get("choices")
        if is_total and not include_usage:
            return None
        piece = piece if is_total else {key: value for key, value in piece.items() if key != "usage"}
    return f"data: {json.dumps(piece, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _check_samples(n: int, mark: WatermarkScheme) -> Refusal | None:
    """The key draws the tokens of a channel, so two samples of a prompt in one channel would become alike."""
    if mark.kind is not WatermarkKind.GUMBEL or n <= mark.channels:
        return None
    message = (
        f"n may be at most {mark.channels} here, not {n}: answers are marked in as many channels "
        "(teacher.watermark.channels), and more samples of a prompt would become alike"
    )
    return Refusal(400, "above_cap", message, "n")


def _card(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "stillhouse"}


def _secret(request: Request) -> str | None:
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret.strip() or None if kind.lower() == "bearer" else None


def _is_header(names: tuple[str, ...]) -> bool:
    return bool(names) and all(name.isascii() and name.replace("_", "").isalnum() for name in names)


def _refused(refusal: Refusal) -> Response:
    return JSONResponse(refusal.body, status_code=refusal.status, headers=refusal.headers)


def _from_teacher(error: dict[str, Any]) -> Refusal:
    """The engine's own refusal (too long a prompt, say), or a fault of the teacher as `_to_teacher_fault` has it."""
    status = error.get("status", error.get("code", 400))
    status = status if isinstance(status, int) and 400 <= status < 600 else 400
    code = error["code"] if isinstance(error.get("code"), str) else "invalid_value"
    retry_after_s = BUSY_RETRY_S if status == 503 else None
    return Refusal(status, code, str(error["message"]), error.get("param"), retry_after_s)


def _to_teacher_fault(error: Exception) -> Refusal:
    match classify(error):
        case Fault.LATE:
            return Refusal(504, "teacher_late", "the teacher did not answer in time")
        case Fault.BUSY | Fault.LOST:
            return Refusal(503, "teacher_unavailable", "the teacher is busy or being replaced", None, BUSY_RETRY_S)
        case None:
            raise error


async def _to_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, _Refused)
    return _refused(error.refusal)


async def _to_json(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refused(Refusal(error.status_code, "unknown_url", f"{request.method} {request.url.path}: {error.detail}"))


async def _to_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=400)


async def _to_fault(request: Request, error: Exception) -> Response:
    """Starlette raises the error again afterwards, so that it is logged; the client is told nothing of it."""
    return _refused(Refusal(500, "internal_error", "the gateway failed; the operator's log says why"))
