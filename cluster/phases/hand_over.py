"""HAND OVER: deletes the teacher's application and waits until what it held is free for the student."""

import time
from typing import Any

from cluster.context import RunContext
from cluster.session import cluster_address
from cluster.teachers import app_names
from configs.errors import DeadlineExceeded

POLL_S = 0.1


def hand_over(ctx: RunContext) -> dict[str, Any]:
    """Free the teacher's resources; does nothing when this command started no teacher."""
    record = ctx.run_dir.phase_record("hand_over")
    if record is not None and not ctx.has_session:
        return record
    return ctx.finish("hand_over", lambda: _hand_over(ctx))


def _hand_over(ctx: RunContext) -> dict[str, Any]:
    if not ctx.has_session and not cluster_address(ctx.config.cluster):
        # The embedded cluster of the command that generated is gone, and the teacher with it.
        return {"waited_for": []}
    ctx.session  # noqa: B018  joins it: a command that was killed may have left its teacher there
    from ray import serve

    names = app_names(ctx.config)
    held_at_first = _held_by(names)
    for name in names:
        if name in serve.status().applications:
            serve.delete(name, _blocking=False)
    give_up_at = time.monotonic() + ctx.config.deadlines.hand_over
    while held := _held_by(names):
        if time.monotonic() > give_up_at:
            raise DeadlineExceeded(
                f"the teacher was not gone after {ctx.config.deadlines.hand_over:.0f} s (deadlines.hand_over); "
                f"still held: {'; '.join(held)}"
            )
        ctx.progress.update(detail=f"waiting for {'; '.join(held)}")
        time.sleep(POLL_S)
    ctx.progress.update(detail="")
    return {"waited_for": held_at_first}


def is_replicas_group(group: str, app: str) -> bool:
    """Whether a placement group has the name that Serve gives those of an application's replicas."""
    return group.startswith(f"SERVE_REPLICA::{app}#")


def _held_by(names: list[str]) -> list[str]:
    """What the applications still hold, in words."""
    return [held for name in names for held in _held_by_one(name)]


def _held_by_one(name: str) -> list[str]:
    """Its replicas as Serve knows them, and their placement groups."""
    from ray import serve
    from ray.util import placement_group_table

    app = serve.status().applications.get(name)
    held = []
    for deployment, status in (app.deployments if app else {}).items():
        states = {state: count for state, count in status.replica_states.items() if count}
        held += [f"{count} replica(s) of {deployment} {state}" for state, count in states.items()]
    if app and not held:
        held.append(f"application {name} {app.status.value}")
    for group in placement_group_table().values():
        if group["state"] == "CREATED" and is_replicas_group(group["name"], name):
            held.append(f"placement group {group['name']} with {group['bundles']}")
    return held
