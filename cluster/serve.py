"""``stillhouse serve``: the teacher behind vLLM's OpenAI-compatible endpoint, on loopback, until Ctrl-C."""

import threading
from typing import TYPE_CHECKING

from cluster.phases.make_teacher import make_teacher
from cluster.phases.terms import check_terms
from cluster.teachers import start_http_teacher, stop_teachers
from configs.errors import UserError
from configs.schema import EngineKind

if TYPE_CHECKING:
    from cluster.context import RunContext


def serve_teacher(ctx: "RunContext", port: int) -> None:
    """Deploy, print the address, and wait to be interrupted; the application is gone afterwards.

    Raises:
        UserError: the recipe asks for the in-process engine, which has no HTTP endpoint.
    """
    if ctx.config.pool[ctx.config.main_teacher].engine.kind is EngineKind.IN_PROCESS:
        raise UserError("teacher.engine.kind=in_process serves batches only; leave it at auto, or set async, to serve")
    check_terms(ctx)
    make_teacher(ctx)
    try:
        with ctx.progress.phase("serve"):
            start_http_teacher(ctx, port)
            ctx.progress.say(f"serving {ctx.config.name} at http://127.0.0.1:{port}/v1 (Ctrl-C ends it)")
            threading.Event().wait()
    finally:
        stop_teachers(ctx.config, [ctx.config.main_teacher])
