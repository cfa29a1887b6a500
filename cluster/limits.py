"""What a cluster can never give is refused before anything is started on it: CPUs, GPUs, and GPUs of a type.

A cluster that does not tell whether it can grow is not held against the recipe; `RunContext` says so once. One that was
started by hand may have nodes that have yet to join, so it is given a moment.
"""

import time
from collections.abc import Sequence

from cluster.pools import Demand, client_demand, find_excess, in_words, student_demand, teacher_demands
from cluster.session import Session
from configs.errors import UserError
from configs.schema import Device, RunConfig

JOIN_S, LOOK_EVERY_S = 30.0, 2.0
UNTOLD = (
    "cluster: Ray does not tell whether this cluster can grow, so what it has now is not held against the recipe; "
    "set cluster.max_gpus to have too many GPUs refused"
)


def check_teachers(config: RunConfig, session: Session, teachers: Sequence[str], *, has_clients: bool = True) -> None:
    """Hold the fewest replicas of these teachers, which are up at the same time, against what the cluster may come to.

    Raises:
        UserError: there will never be enough CPUs or GPUs, or no GPU of a type; names the key and the fix.
    """
    demands = teacher_demands(config, session.device, teachers, at_least=True)
    clients = [client_demand(len(teachers))] if has_clients else []
    check_demands([*demands, *clients], session)
    limits = session.limits()
    for name in teachers:
        teacher = config.pool[name]
        kind = teacher.accelerator_type
        on_gpu = session.device(teacher.engine.device, kind) is Device.GPU
        if kind is None or not on_gpu or limits is None or f"accelerator_type:{kind}" in limits:
            continue
        there = sorted(key.split(":")[1] for key in limits if key.startswith("accelerator_type:"))
        raise UserError(
            f"{config.teacher_key(name)}.accelerator_type={kind}: the cluster has no GPU of that type and "
            f"{_cannot(session)}; it has {', '.join(there) or 'none whose type is known'}: name a type that is "
            f"there, or add nodes with a {kind}"
        )


def check_student(config: RunConfig, session: Session) -> None:
    """Hold the student's fewest workers against what the cluster may come to. Raises `UserError` as `check_demands`."""
    check_demands([student_demand(config, session)], session)


def check_both(config: RunConfig, session: Session, teachers: Sequence[str]) -> None:
    """Hold these teachers and the student side by side against it. Raises `UserError` as `check_demands`."""
    demands = teacher_demands(config, session.device, teachers, at_least=True)
    check_demands([*demands, client_demand(len(teachers)), student_demand(config, session)], session)


def check_demands(demands: Sequence[Demand], session: Session) -> None:
    """Hold what is needed at the same time against what the cluster may come to.

    Raises:
        UserError: there will never be so much; names every key that asks for some of it.
    """
    _await_nodes(demands, session)
    if (limits := session.limits()) is None:
        return
    for resource, parts, needed, most in find_excess(demands, limits):
        # Logical CPUs are what Ray counts; on one machine they may share its cores.
        fix = "raise cluster.num_cpus" if session.embedded and resource == "CPU" else "add nodes"
        raise UserError(
            f"{' and '.join(parts)}: {needed:g} {resource}s are needed at the same time ({in_words(parts)}), and the "
            f"cluster has {most:g} and {_cannot(session)}; lower {' or '.join(parts)}, or {fix}"
        )


def _await_nodes(demands: Sequence[Demand], session: Session) -> None:
    """Return when a cluster that was started by hand has enough, or when no more nodes are expected to join it."""
    give_up_at = time.monotonic() + JOIN_S
    while not session.embedded and session.is_fixed() and time.monotonic() < give_up_at:
        if not any(find_excess(demands, session.resources())):
            return
        time.sleep(LOOK_EVERY_S)


def _cannot(session: Session) -> str:
    return "cannot grow" if session.is_fixed() else "its autoscaler may not start more"
