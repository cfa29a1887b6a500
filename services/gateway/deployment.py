"""The gateway on Ray Serve: replicas of the HTTP side before the teacher, and one actor that decides for all of them.

The actor stays on the node of the command that made it, as its files lie there, and Ray starts it again when it dies.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.util.metrics import Counter
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from services.gateway.admission import COUNTED, COUNTERS, Admission, AdmissionSpec, Grant, Visit
from services.gateway.app import GatewaySpec, build_app
from services.gateway.refusals import Refusal

MAX_ONGOING = 1000  # of a replica: most only wait for the teacher
ALWAYS = -1


class AdmissionActor:
    """`Admission` in a process of its own: Ray hands it one call after another, so each is a transaction."""

    def __init__(self, spec: AdmissionSpec, run: str) -> None:
        self._run = run
        self._counters = {
            name: Counter(COUNTED + name, description, ("run", tag)) for name, (description, tag) in COUNTERS.items()
        }
        self._admission = Admission(spec, self._count)

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """One of `Admission`'s methods."""
        return getattr(self._admission, method)(*arguments)

    def _count(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        if value > 0:  # Ray's counters refuse to be told of nothing
            self._counters[name].inc(value, {"run": self._run, **tags})


class RemoteAdmission:
    """The actor's methods as the HTTP side calls them."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def admit(self, secret: str | None, visit: Visit) -> Refusal | None:
        return await self._actor.call.remote("admit", (secret, visit))

    async def list_models(self, secret: str | None, visit: Visit) -> list[str] | Refusal:
        return await self._actor.call.remote("list_models", (secret, visit))

    async def reserve(self, secret: str, visit: Visit, prompt_tokens: int) -> Grant | Refusal:
        return await self._actor.call.remote("reserve", (secret, visit, prompt_tokens))

    async def settle(self, grant: Grant, used: int | None, outcome: str, completion_sha256: str) -> None:
        await self._actor.call.remote("settle", (grant, used, outcome, completion_sha256))

    async def accept_terms(self, secret: str | None, visit: Visit, terms_sha256: str) -> Refusal | None:
        return await self._actor.call.remote("accept_terms", (secret, visit, terms_sha256))


class RemoteTeacher:
    """The teacher's two methods through its handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def count_prompt_tokens(self, path: str, body: dict[str, Any]) -> int | dict[str, Any]:
        return await self._handle.count_prompt_tokens.remote(path, body)

    async def answer(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        response = self._handle.options(stream=True).answer.remote(path, body)
        try:
            async for piece in response:
                yield piece
        except (asyncio.CancelledError, GeneratorExit):
            response.cancel()  # the engine stops writing for a client who has left
            raise


class Gateway:
    """One replica of the HTTP side."""

    async def __init__(self, spec: GatewaySpec, actor: Any, teacher: DeploymentHandle) -> None:  # type: ignore[misc]
        self._app = build_app(spec, RemoteAdmission(actor), RemoteTeacher(teacher))

    async def __serve_build_asgi_app__(self) -> Any:
        """Serve's name for it."""
        return self._app


def start_admission(spec: AdmissionSpec, run: str) -> Any:
    """The actor, on this node; it ends with its last handle, that is, with the gateway and this process.

    Raises:
        UserError: the audit log does not hold.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = (
        ray.remote(AdmissionActor)
        .options(num_cpus=0, max_restarts=ALWAYS, max_task_retries=0, scheduling_strategy=here)
        .remote(spec, run)
    )
    ray.get(actor.__ray_ready__.remote())
    return actor


def build_gateway(spec: GatewaySpec, actor: Any, teacher: serve.Application) -> serve.Application:
    """The application with the gateway as its ingress."""
    deployment = serve.deployment(
        serve.ingress()(Gateway),
        name="gateway",
        num_replicas=spec.config.replicas,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    return deployment.bind(spec, actor, teacher)
