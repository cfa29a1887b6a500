"""How many replicas of a teacher can answer, as Serve says: what a client's window of rows goes by."""

from ray import serve
from ray.serve.schema import ReplicaState, ServeStatus


def running_replicas(app_name: str) -> int:
    """Replicas that take calls; 0 while none does, or where there is no such application.

    Raises:
        RayServeException, RayError: Serve does not answer.
    """
    return count_running(serve.status(), app_name)


def count_running(status: ServeStatus, app_name: str) -> int:
    """The same, of what Serve has said; each deployment of an application needs one."""
    app = status.applications.get(app_name)
    numbers = [each.replica_states.get(ReplicaState.RUNNING, 0) for each in app.deployments.values()] if app else []
    return min(numbers, default=0)


def window_share(window_rows: int, running: int, max_replicas: int) -> int:
    """The part of a window for ``max_replicas`` that the running ones have work for, one of them at the least.

    More rows would wait in their queues, out of reach of a replica that comes later. 384 rows for 8 replicas of which
    2 run: ``window_share(384, 2, 8) == 96``.
    """
    return max(1, round(window_rows * min(max(running, 1), max_replicas) / max_replicas))
