"""The run's teachers as Serve applications: their names, their start, the wait for replicas, and their end."""

import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.binding import bind_teacher
from cluster.context import RunContext
from cluster.gateway import build_ingress
from cluster.http_proxy import check_proxy, read_proxy
from cluster.limits import check_teachers
from cluster.models import teacher_source
from cluster.run_dir import RunDir
from cluster.session import LOOPBACK
from configs.errors import DeadlineExceeded
from configs.schema import Device, EngineKind, RunConfig
from services.engine_settings import engine_kind, find_differences

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from services.deployment import TeacherApp


def app_name(config: RunConfig, teacher: str) -> str:
    """Name of a teacher's Serve application, so that runs on one cluster don't touch each other's.

    It has a digest of the run directory: runs of one recipe in several directories may have one name.
    """
    place = hashlib.sha256(RunDir.of(config).uri().encode()).hexdigest()[:6]
    return f"teacher-{config.name}-{place}" + (f"-{teacher}" if config.teachers else "")


def app_names(config: RunConfig) -> list[str]:
    """Of all the run's teachers."""
    return [app_name(config, teacher) for teacher in config.pool]


def start_teachers(ctx: RunContext, window_rows: dict[str, int]) -> dict[str, "DeploymentHandle"]:
    """Deploy the teachers of these names; their replicas load while their clients start.

    ``window_rows`` is what a teacher's clients ask for at a time, all of them together.
    """
    apps = {teacher: _to_app(ctx, teacher, rows) for teacher, rows in window_rows.items()}
    ctx.progress.update(detail="loading Ray Serve")
    _start_serve(None)
    from services.deployment import start_teacher

    return {teacher: start_teacher(app) for teacher, app in apps.items()}


def start_http_teacher(ctx: RunContext, port: int) -> None:
    """Deploy the main teacher behind the OpenAI-compatible endpoint at ``port``, and wait for its first replica.

    A recipe with a section ``gateway`` has that before the teacher, others vLLM's own endpoint on loopback.
    """
    config = ctx.config.gateway
    host = LOOPBACK if config is None else config.host
    teacher = ctx.config.main_teacher
    app = _to_app(ctx, teacher, 0, EngineKind.ASYNC)  # no clients of ours
    check_teachers(ctx.config, ctx.session, [teacher], has_clients=False)
    ctx.progress.update(detail="loading Ray Serve")
    with ThreadPoolExecutor(max_workers=1) as beside:
        # Serve's controller starts while this process imports vLLM, each for seconds on a core of its own.
        started = beside.submit(_start_serve, port, host)
        from services import llm_teacher  # noqa: F401

        started.result()
    from services import deployment

    deployment.start_http_teacher(app, None if config is None else build_ingress(ctx, config))
    wait_for_teacher(ctx, teacher)


def wait_for_teacher(ctx: RunContext, teacher: str) -> None:
    """Until a replica of it can answer. Raises `UserError` when none can be built, `DeadlineExceeded` when none is.

    Raises `BudgetReached` as well: this wait may be half an hour.
    """
    from services.deployment import wait_until_ready

    wait_until_ready(app_name(ctx.config, teacher), ctx.config.deadlines.replica_start, partial(_show_wait, ctx))
    ctx.progress.update(detail="")


class TeacherStarts:
    """The wait for the first replica of each teacher, one look at a time: those that are ready work meanwhile."""

    def __init__(self, ctx: RunContext, teachers: list[str]) -> None:
        self._ctx = ctx
        self._give_up_at = time.monotonic() + ctx.config.deadlines.replica_start
        self.loading = list(teachers)

    def look(self) -> list[str]:
        """The teachers that have become ready since the last look. Raises what `wait_for_teacher` raises."""
        if not self.loading:
            return []
        from services.deployment import is_ready

        config, on_wait = self._ctx.config, partial(_show_wait, self._ctx)
        ready = [
            teacher
            for teacher in self.loading
            if is_ready(app_name(config, teacher), config.deadlines.replica_start, self._give_up_at, on_wait)
        ]
        self.loading = [teacher for teacher in self.loading if teacher not in ready]
        if not self.loading:
            self._ctx.progress.update(detail="")
        return ready


def _show_wait(ctx: RunContext, message: str) -> None:
    ctx.budget.check()  # the nodes cost as much while weights load
    ctx.progress.update(detail=f"waiting for the first teacher replica ({message})")


def read_engine(ctx: RunContext, teacher: str, handle: "DeploymentHandle") -> dict[str, Any]:
    """The engine's configuration as vLLM resolved it, shown; ``differs`` are sentences on what the recipe asked for.

    Raises:
        DeadlineExceeded: no replica said it in ``deadlines.request`` seconds.
    """
    deadline_s = ctx.config.deadlines.request
    try:
        engine: dict[str, Any] = handle.describe.remote().result(timeout_s=deadline_s)
    except TimeoutError:
        raise DeadlineExceeded(
            f"{teacher} did not say its engine's configuration in {deadline_s:.0f} s (deadlines.request), though a "
            f"replica of it is ready: {describe_teachers(ctx.config, [teacher])}"
        ) from None
    differs = find_differences(ctx.config.pool[teacher].engine, engine)
    shown = ", ".join(f"{key} {value}" for key, value in engine.items() if key != "engine")
    ctx.progress.say(f"generate: {teacher} runs vLLM {engine['engine']}: {shown}")
    for sentence in differs:
        ctx.progress.say(f"generate: {teacher}: {sentence}")
    return {**engine, "differs": differs}


def describe_teachers(config: RunConfig, teachers: list[str]) -> str:
    """What Serve has to say of each of those that were started. Raises `UserError` when it has given up on one."""
    from services.deployment import describe_teacher

    described = {teacher: describe_teacher(app_name(config, teacher)) for teacher in teachers}
    return "; ".join(f"{teacher}: {words}" if config.teachers else words for teacher, words in described.items())


def stop_teachers(config: RunConfig, teachers: list[str]) -> None:
    """Ask for their removal; HAND OVER waits for it."""
    from services.deployment import delete_teacher

    for teacher in teachers:
        delete_teacher(app_name(config, teacher))


def close_handles(handles: dict[str, "DeploymentHandle"]) -> None:
    """What asks teachers on threads of this process ends."""
    from services.deployment import close_handle

    for handle in handles.values():
        close_handle(handle)


def _to_app(ctx: RunContext, name: str, window_rows: int, kind: EngineKind | None = None) -> "TeacherApp":
    config, device = ctx.config, teacher_device(ctx, name)  # before Ray is imported: it starts the session
    from services.deployment import TeacherApp

    teacher, source = config.pool[name], teacher_source(config, ctx.run_dir, name)
    return TeacherApp(
        name=app_name(config, name),
        served_name=config.name,
        model=source.model,
        teacher=teacher,
        device=device,
        kind=kind or engine_kind(teacher.engine, device),
        window_rows=window_rows,
        binding=bind_teacher(config, source),
        labels=config.cluster.teacher_labels,
        drain_s=config.deadlines.request,
    )


def teacher_device(ctx: RunContext, name: str) -> Device:
    """What a teacher's replicas compute on, on the run's cluster."""
    teacher = ctx.config.pool[name]
    return ctx.session.device(teacher.engine.device, teacher.accelerator_type)


def _start_serve(http_port: int | None, host: str = LOOPBACK) -> None:
    """Start Serve's controller; with a port also its HTTP proxy. Raises `UserError` when Serve runs without that."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # after its import, which sets it
    serve.start(
        proxy_location="Disabled" if http_port is None else "HeadOnly",
        http_options=None if http_port is None else {"host": host, "port": http_port},
        logging_config={"log_level": "WARNING"},
    )
    if http_port is not None:
        check_proxy(read_proxy(), host, http_port)
