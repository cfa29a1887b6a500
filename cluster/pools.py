"""Whether teacher and student fit the cluster side by side, told before either starts (``cluster.phases=overlapped``).

Ray would wait for what cannot come, and a teacher that scales up would take what the student waits for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.session import Session
from configs.errors import UserError
from configs.schema import Device, RunConfig, TrainingConfig

RESOURCES = ("CPU", "GPU")


@dataclass(frozen=True, slots=True)
class Demand:
    """What somebody holds: ``Demand("training.num_workers", {"CPU": 2.0})``."""

    key: str
    resources: Mapping[str, float]


def check_side_by_side(config: RunConfig, session: Session) -> None:
    """Hold teacher, clients and the student's fewest workers against the nodes of a cluster that can't grow.

    Raises:
        UserError: they do not fit; names what each of them needs, what there is, and the fix.
    """
    if not session.is_fixed():  # an autoscaler may start what is missing
        return
    cluster, is_split = config.cluster, bool(config.cluster.student_labels)
    # On nodes of its own a teacher takes nobody else's room when it scales up.
    teachers = teacher_demands(config, session.device, list(config.pool), at_least=is_split)
    student, clients = student_demand(config, session), client_demand(config.generation.clients * len(config.pool))
    if is_split:
        check_room(teachers, session.nodes(cluster.teacher_labels), "nodes with cluster.teacher_labels")
        check_room([student], session.nodes(cluster.student_labels), "nodes with cluster.student_labels")
        others = session.nodes(off_student_nodes(config))
        check_room([*teachers, clients], others, "cluster without nodes with cluster.student_labels")
    check_room([*teachers, clients, student], session.nodes(), "cluster")


def off_student_nodes(config: RunConfig) -> dict[str, str]:
    """Ray's label selector of nodes for clients: a small one in the student's way would keep it waiting to the end.

    ``{"pool": "!student"}`` for labels of which ``pool`` alone tells the student's nodes from the teacher's.
    """
    cluster = config.cluster
    return {
        key: f"!{value}" for key, value in cluster.student_labels.items() if cluster.teacher_labels.get(key) != value
    }


def teacher_demands(
    config: RunConfig, device: Callable[[Device, str | None], Device], teachers: Sequence[str], *, at_least: bool
) -> list[Demand]:
    """Of each of these teachers: all replicas that it may have, or the fewest."""
    demands = []
    for name in teachers:
        teacher = config.pool[name]
        replicas = teacher.min_replicas if at_least else teacher.max_replicas
        on_gpu = device(teacher.engine.device, teacher.accelerator_type) is Device.GPU
        needs = {"CPU": 1, "GPU": teacher.engine.gpus_per_replica} if on_gpu else {"CPU": teacher.engine.threads}
        key = f"{config.teacher_key(name)}.{'min' if at_least else 'max'}_replicas"
        demands.append(Demand(key, {resource: float(replicas * each) for resource, each in needs.items()}))
    return demands


def student_demand(config: RunConfig, session: Session) -> Demand:
    """Of the student, which has its fewest workers."""
    return workers_demand(config.training, on_gpu=session.device(config.student.device) is Device.GPU)


def workers_demand(training: TrainingConfig, *, on_gpu: bool) -> Demand:
    """Of the fewest workers of a training."""
    workers, threads = training.min_workers, training.threads_per_worker
    gpus = {"GPU": float(workers)} if on_gpu else {}
    return Demand("training.num_workers", {"CPU": float(workers * threads), **gpus})


def client_demand(clients: int) -> Demand:
    """Of so many clients; one a teacher is the least."""
    from services.pipeline import CLIENT_CPUS  # imports Ray, as the session has

    return Demand("generation.clients", {"CPU": CLIENT_CPUS * clients})


def find_excess(
    demands: Sequence[Demand], there: Mapping[str, float]
) -> Iterator[tuple[str, dict[str, float], float, float]]:
    """Each resource of which more is needed at the same time than is there: what each key needs, all, and what is."""
    for resource in RESOURCES:
        parts = {each.key: each.resources[resource] for each in demands if each.resources.get(resource)}
        if (needed := sum(parts.values())) > (amount := there.get(resource, 0.0)):
            yield resource, parts, needed, amount


def in_words(parts: Mapping[str, float]) -> str:
    """What each key needs: ``training.num_workers 2, generation.clients 0.5``."""
    return ", ".join(f"{key} {amount:g}" for key, amount in parts.items())


def check_room(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]], where: str) -> None:
    """Raises `UserError` when the nodes have less of a resource, all together, than is asked for."""
    there = {resource: sum(node.get(resource, 0.0) for node in nodes) for resource in RESOURCES}
    for resource, parts, needed, amount in find_excess(demands, there):
        # Logical CPUs are what Ray counts; on one machine they may share its cores.
        more = "raise cluster.num_cpus" if resource == "CPU" else "add nodes"
        raise UserError(
            f"cluster.phases=overlapped: teacher and student need {needed:g} {resource}s at the same time "
            f"({in_words(parts)}), and the {where} has {amount:g}; lower one of these, {more}, or set "
            "cluster.phases=in_turn"
        )
