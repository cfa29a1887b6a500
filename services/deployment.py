"""Starts and ends the teacher's Ray Serve application, with settings that are safe for long generations."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from configs.errors import DeadlineExceeded, UserError
from configs.schema import DeadlinesConfig, Device, EngineKind, TeacherConfig
from configs.terms.binding import Binding
from services.engine_settings import engine_environment, engine_kwargs
from services.replicas import count_running
from services.scaling import BacklogPolicy
from services.teacher import InProcessTeacher

OTHER_CALLS = 32  # beside those of rows: of the driver, and of clients who ask whether the teacher answers
CONSTRUCTOR_TRIES = 2  # a model that could not be loaded twice will not load the twentieth time
HEALTH_CHECK_EVERY_S = 5
POLL_S = 0.25
CLOSE_S = 5.0
UPSCALE_AFTER_S, DOWNSCALE_AFTER_S = 5.0, 30.0  # a wish must last so long: a replica costs a cold start
USER_ERROR = f"{UserError.__module__}.{UserError.__name__}: "  # as a traceback ends; its sentence stands by itself
METRICS_OF_S = 15.0  # Serve wants more than its reports' interval of 10 s; the newest value is what counts


@dataclass(frozen=True, slots=True)
class TeacherApp:
    """One teacher as it is deployed: the Serve application ``name`` with ``model`` (a directory or repository).

    Its replicas load nothing but what ``binding`` says, and are placed on nodes that have the ``labels``. All clients
    together ask for ``window_rows`` rows at a time. A replica that is scaled away may finish its calls for ``drain_s``
    seconds: as long as a caller waits for them.
    """

    name: str
    served_name: str
    model: str
    teacher: TeacherConfig
    device: Device
    kind: EngineKind
    window_rows: int
    binding: Binding | None = None
    labels: dict[str, str] = field(default_factory=dict)
    drain_s: float = DeadlinesConfig().request


def start_teacher(app: TeacherApp) -> DeploymentHandle:
    """Ask Serve for the teacher; returns its handle at once, and `wait_until_ready` waits for a replica."""
    if app.kind is EngineKind.IN_PROCESS:
        built = _in_process_app(app)
    else:
        from services.llm_teacher import build_async_app  # loads vLLM

        built = build_async_app(_llm_config(app, backlog_scaling(app.teacher)), app.binding)
    [handle] = serve.run_many(
        [serve.RunTarget(built, name=app.name, route_prefix=None)], wait_for_applications_running=False
    )
    return handle


def start_http_teacher(app: TeacherApp, ingress: Callable[[serve.Application], serve.Application] | None) -> None:
    """Ask Serve for the teacher behind ``ingress``, or vLLM's own endpoint without one, and return at once."""
    from services.llm_teacher import build_async_app, build_http_app  # loads vLLM

    config = _llm_config(app, _http_options(app.teacher))
    built = build_http_app(config, app.binding) if ingress is None else ingress(build_async_app(config, app.binding))
    serve.run_many([serve.RunTarget(built, name=app.name, route_prefix="/")], wait_for_applications_running=False)


def backlog_scaling(teacher: TeacherConfig) -> dict[str, Any]:
    """Replicas by `services.scaling`, which ends them all when nothing is left to do, or nobody is left who asks."""
    bounds = {
        "min_replicas": teacher.min_replicas,
        "max_replicas": teacher.max_replicas,
        "window_rows": teacher.engine.max_num_seqs,
    }
    return {
        "autoscaling_config": {
            "min_replicas": 0,  # the policy keeps the recipe's bounds while there is work
            "initial_replicas": teacher.min_replicas,
            "max_replicas": teacher.max_replicas,
            "upscale_delay_s": UPSCALE_AFTER_S,
            "downscale_delay_s": DOWNSCALE_AFTER_S,
            "look_back_period_s": METRICS_OF_S,
            "policy": {
                "policy_function": f"{BacklogPolicy.__module__}:{BacklogPolicy.__name__}",
                "policy_kwargs": bounds,
            },
        }
    }


def wait_until_ready(app_name: str, deadline_s: float, on_wait: Callable[[str], None]) -> None:
    """Wait until each deployment of the teacher has a replica.

    Raises:
        UserError: the replica cannot be built; carries the reason that vLLM gave.
        DeadlineExceeded: no replica was ready in ``deadline_s`` seconds.
    """
    give_up_at = time.monotonic() + deadline_s
    while not is_ready(app_name, deadline_s, give_up_at, on_wait):
        time.sleep(POLL_S)


def is_ready(app_name: str, deadline_s: float, give_up_at: float, on_wait: Callable[[str], None]) -> bool:
    """One look of `wait_until_ready`, with its errors; ``on_wait`` is told what Serve says of a teacher that is not."""
    status = serve.status()
    if count_running(status, app_name):
        return True
    app = status.applications.get(app_name)
    messages = [app.message, *(each.message for each in app.deployments.values())] if app else []
    if app is not None and app.status == ApplicationStatus.DEPLOY_FAILED:
        raise UserError(f"the teacher could not start: {_last_line(messages)}")
    if time.monotonic() > give_up_at:
        raise DeadlineExceeded(
            f"no teacher replica was ready after {deadline_s:.0f} s (deadlines.replica_start); "
            f"Serve says: {_last_line(messages)}"
        )
    on_wait(_last_line(messages))
    return False


def describe_teacher(app_name: str) -> str:
    """The teacher's replicas by state and Serve's last message, in a few words.

    Raises:
        UserError: Serve has given up on the teacher.
    """
    app = serve.status().applications.get(app_name)
    if app is None:
        raise UserError(f"the teacher {app_name} is not deployed any more; run the command again")
    messages = [app.message, *(each.message for each in app.deployments.values())]
    if app.status == ApplicationStatus.DEPLOY_FAILED:
        raise UserError(f"the teacher could not start again: {_last_line(messages)}")
    states = Counter[str]()
    for deployment in app.deployments.values():
        states.update({str(state): number for state, number in deployment.replica_states.items() if number})
    replicas = ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "no replica"
    return f"{replicas}; {_last_line(messages)}"


def delete_teacher(app_name: str) -> None:
    """Delete the application; returns when Serve has accepted it, not when the resources are free."""
    serve.delete(app_name, _blocking=False)


def close_handle(handle: DeploymentHandle) -> None:
    """End the reports of a handle that is used no more; they would go on, and fail, once Ray is gone."""

    def close() -> None:
        with suppress(RayError):
            handle.shutdown()

    # On a thread, as it waits without a deadline. An event loop here would take Ctrl-C for its own, and could lose it.
    thread = Thread(target=close, name="close-handle", daemon=True)
    thread.start()
    thread.join(CLOSE_S)


def _in_process_app(app: TeacherApp) -> serve.Application:
    options = _deployment_options(app) | backlog_scaling(app.teacher)
    actor = {
        "num_cpus": app.teacher.engine.threads,
        "runtime_env": {"env_vars": engine_environment(app.teacher.engine, app.kind, app.device)},
        **({"label_selector": app.labels} if app.labels else {}),
    }
    deployment = serve.deployment(
        InProcessTeacher, name=f"teacher:{app.served_name}", ray_actor_options=actor, **options
    )
    return deployment.bind(app.model, engine_kwargs(app.teacher, app.device), app.binding)


def _llm_config(app: TeacherApp, options: dict[str, Any]) -> Any:
    """`ray.serve.llm`'s configuration of the teacher."""
    from ray.serve.llm import LLMConfig  # loads vLLM

    teacher, on_gpu = app.teacher, app.device is Device.GPU
    actor = {"num_cpus": 1 if on_gpu else teacher.engine.threads}
    # Serve takes one selector for each bundle of a replica.
    placement = {"placement_group_bundle_label_selector": [app.labels]} if app.labels else {}
    return LLMConfig(
        model_loading_config={"model_id": app.served_name, "model_source": app.model},
        engine_kwargs=engine_kwargs(teacher, app.device),
        accelerator_type=teacher.accelerator_type if on_gpu else None,
        accelerator_config=None if on_gpu else {"kind": "cpu"},
        # On a CPU the replica's own bundle has the engine's cores; a worker's would reserve one that nobody uses.
        placement_group_config=None if on_gpu else {"bundles": [{"CPU": 0}]},
        deployment_config={**_deployment_options(app), "ray_actor_options": actor, **placement, **options},
        runtime_env={"env_vars": engine_environment(teacher.engine, app.kind, app.device)},
        log_engine_metrics=True,
    )


def _deployment_options(app: TeacherApp) -> dict[str, Any]:
    return {
        # A call is open until its longest row is done, and at the end of a long tail each has only that one left. One
        # replica may have the calls of all, while the others start.
        "max_ongoing_requests": app.window_rows + OTHER_CALLS,
        "max_constructor_retry_count": CONSTRUCTOR_TRIES,
        "graceful_shutdown_timeout_s": app.drain_s,  # the default of 20 s would kill it in the middle of its answers
        "health_check_period_s": HEALTH_CHECK_EVERY_S,
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
    }


def _http_options(teacher: TeacherConfig) -> dict[str, Any]:
    """For people who ask over HTTP, one answer a request: as many of them as the engine decodes at a time."""
    options: dict[str, Any] = {"max_ongoing_requests": 2 * teacher.engine.max_num_seqs}
    if teacher.min_replicas == teacher.max_replicas:
        return options | {"num_replicas": teacher.min_replicas}
    scaling = {
        "min_replicas": teacher.min_replicas,
        "max_replicas": teacher.max_replicas,
        "target_ongoing_requests": teacher.engine.max_num_seqs,
    }
    return options | {"autoscaling_config": scaling}


def _last_line(messages: list[str]) -> str:
    """The most telling line of Serve's messages: the last of the last traceback."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return lines[-1].removeprefix(USER_ERROR) if lines else "nothing yet"
