"""``stillhouse serve``: the teacher behind an OpenAI-compatible endpoint until Ctrl-C, on loopback by default."""

import threading
from typing import TYPE_CHECKING

from cluster.gateway import check_gateway
from cluster.phases.make_teacher import make_teacher
from cluster.phases.terms import check_terms
from cluster.session import LOOPBACK
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
    if ctx.config.gateway is not None:
        check_gateway(ctx.config)
    check_terms(ctx)
    make_teacher(ctx)
    try:
        with ctx.progress.phase("serve"):
            start_http_teacher(ctx, port)
            gateway = ctx.config.gateway
            host, keys = (LOOPBACK, "") if gateway is None else (gateway.host, " for holders of keys")
            ctx.progress.say(f"serving {ctx.config.name} at http://{host}:{port}/v1{keys} (Ctrl-C ends it)")
            threading.Event().wait()
    finally:
        stop_teachers(ctx.config, [ctx.config.main_teacher])
