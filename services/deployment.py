"""Starts and ends the teacher's Ray Serve application, with settings that are safe for long generations."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.llm import LLMConfig, build_llm_deployment, build_openai_app
from ray.serve.schema import ApplicationStatus

from configs.errors import DeadlineExceeded, UserError
from configs.schema import Device, EngineConfig, EngineKind, TeacherConfig
from services.engine import InProcessEngine
from services.teacher import TeacherServer

DRAIN_S = 600.0  # a replica that is scaled away may finish what it writes; Serve's default of 20 s would kill it
MAX_ONGOING_CALLS = 64  # calls of many rows each; the clients' windows are what limits rows
CONSTRUCTOR_TRIES = 2  # a model that could not be loaded twice will not load the twentieth time
CPU_BATCHED_TOKENS = 4096  # prompt tokens of one engine step, the default of `vllm.LLM`
POLL_S = 0.25


def engine_kind(engine: EngineConfig, device: Device) -> EngineKind:
    """The engine that ``auto`` stands for on a given device."""
    if engine.kind is not EngineKind.AUTO:
        return engine.kind
    return EngineKind.ASYNC if device is Device.GPU else EngineKind.IN_PROCESS


def build_llm_config(
    teacher: TeacherConfig, model: str, served_name: str, device: Device, kind: EngineKind, rows_per_call: int
) -> LLMConfig:
    """Translate the recipe's teacher section into `ray.serve.llm`'s configuration."""
    in_process = kind is EngineKind.IN_PROCESS
    on_gpu = device is Device.GPU
    return LLMConfig(
        model_loading_config={"model_id": served_name, "model_source": model},
        engine_kwargs=_engine_kwargs(teacher, on_gpu),
        accelerator_type=teacher.accelerator_type if on_gpu else None,
        accelerator_config=None if on_gpu else {"kind": "cpu"},
        # On a CPU the replica's own bundle has the engine's cores; a worker's would reserve one that nobody uses.
        placement_group_config=None if on_gpu else {"bundles": [{"CPU": 0}]},
        deployment_config={
            "max_ongoing_requests": MAX_ONGOING_CALLS,
            "max_constructor_retry_count": CONSTRUCTOR_TRIES,
            "graceful_shutdown_timeout_s": DRAIN_S,
            "health_check_period_s": 5,
            "ray_actor_options": {"num_cpus": 1 if on_gpu else teacher.engine.threads},
            "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
            **_replicas(teacher, rows_per_call),
        },
        runtime_env={"env_vars": _environment(teacher.engine, in_process, on_gpu)},
        log_engine_metrics=not in_process,
    )


def start_teacher(llm_config: LLMConfig, kind: EngineKind, app_name: str, *, http: bool = False) -> None:
    """Ask Serve for the application and return at once; `wait_until_ready` waits for it."""
    if http:
        # The ingress only passes requests on; on two cores a CPU of its own would never be free.
        ingress = {"ray_actor_options": {"num_cpus": 0}, "num_replicas": 1, "autoscaling_config": None}
        app = build_openai_app({"llm_configs": [llm_config], "ingress_deployment_config": ingress})
    else:
        bind_kwargs = {"engine_cls": InProcessEngine} if kind is EngineKind.IN_PROCESS else {}
        app = build_llm_deployment(
            llm_config, name_prefix="teacher:", deployment_cls=TeacherServer, bind_kwargs=bind_kwargs
        )
    target = serve.RunTarget(app, name=app_name, route_prefix="/" if http else None)
    serve.run_many([target], wait_for_applications_running=False)


def wait_until_ready(app_name: str, deadline_s: float, on_wait: Callable[[str], None]) -> DeploymentHandle:
    """Wait for a replica and return the handle of the teacher.

    Raises:
        UserError: the replica cannot be built; carries the reason that vLLM gave.
        DeadlineExceeded: no replica was ready in ``deadline_s`` seconds.
    """
    give_up_at = time.monotonic() + deadline_s
    while True:
        app = serve.status().applications.get(app_name)
        if app is not None and app.status == ApplicationStatus.RUNNING:
            return serve.get_app_handle(app_name)
        messages = [app.message, *(each.message for each in app.deployments.values())] if app else []
        if app is not None and app.status == ApplicationStatus.DEPLOY_FAILED:
            raise UserError(f"the teacher could not start: {_last_line(messages)}")
        if time.monotonic() > give_up_at:
            raise DeadlineExceeded(
                f"no teacher replica was ready after {deadline_s:.0f} s (deadlines.replica_start); "
                f"Serve says: {_last_line(messages)}"
            )
        on_wait(_last_line(messages))
        time.sleep(POLL_S)


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


def _engine_kwargs(teacher: TeacherConfig, on_gpu: bool) -> dict[str, Any]:
    engine = teacher.engine
    kwargs: dict[str, Any] = {
        "dtype": engine.dtype,
        "max_num_seqs": engine.max_num_seqs,
        "trust_remote_code": teacher.trust_remote_code,
    }
    if teacher.revision:
        kwargs["revision"] = teacher.revision
    if engine.max_model_len:
        kwargs["max_model_len"] = engine.max_model_len
    if on_gpu:
        kwargs["gpu_memory_utilization"] = engine.gpu_memory_utilization
        kwargs["tensor_parallel_size"] = engine.tensor_parallel_size
        kwargs["pipeline_parallel_size"] = engine.pipeline_parallel_size
    else:
        kwargs["enforce_eager"] = True  # compiling takes longer than it saves at the sizes that run on CPUs
        # vLLM 0.29 rewinds a seeded generator after a partial prefill, which torch's CPU generator cannot do.
        kwargs["enable_chunked_prefill"] = False
        kwargs["max_num_batched_tokens"] = max(CPU_BATCHED_TOKENS, engine.max_model_len or 0)
    return kwargs | engine.extra


def _environment(engine: EngineConfig, in_process: bool, on_gpu: bool) -> dict[str, str]:
    environment = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    if on_gpu:
        return environment
    return environment | {
        "VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gib),
        # Pinning is for whoever owns the whole machine: beside a Ray node, two replicas would pin the same core.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(engine.threads),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if in_process else "1",
    }


def _replicas(teacher: TeacherConfig, rows_per_call: int) -> dict[str, Any]:
    if teacher.min_replicas == teacher.max_replicas:
        return {"num_replicas": teacher.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": teacher.min_replicas,
            "max_replicas": teacher.max_replicas,
            # As many calls as the engine decodes at a time: more of them mean that work is waiting.
            "target_ongoing_requests": max(1, teacher.engine.max_num_seqs // rows_per_call),
        }
    }


def _last_line(messages: list[str]) -> str:
    """The most telling line of Serve's messages: the last of the last traceback."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing yet"
