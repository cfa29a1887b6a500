"""Whether a cluster that is joined can grow, and how far, as far as Ray tells; `cluster.session` asks.

The process beside Ray's head is the same with and without an autoscaler: without one it only mirrors the nodes. Its
first form (v1) reports the kinds of nodes, and one that mirrors calls each node a kind of its own. Its second form
(v2) reports no kinds, but every node that it starts, and its head, bear the name of their kind or machine; so do all
nodes of KubeRay, with and without an autoscaler, of which therefore nothing can be told. Ray knows limits where an
autoscaler has put them down, which none of those that come with it does.
"""

import json
from collections.abc import Collection, Mapping


def is_fixed(report: bytes | None, is_v2: bool, node_ids: Collection[str], kinds: Collection[str]) -> bool:
    """Whether a cluster surely has no autoscaler: False as well where that cannot be told.

    ``report`` is what v1's process has put down last, ``node_ids`` are the nodes that are or were there, in hex, and
    ``kinds`` what the nodes that are up say of their kind or machine, the empty ones included.
    """
    if report is not None:
        status = json.loads(report).get("autoscaler_report") or {}
        pending = [*status.get("pending_launches", {}), *(kind for _, kind, _ in status.get("pending_nodes", []))]
        seen = {*status.get("active_nodes", {}), *pending}
        return bool(seen) and seen <= {f"node_{each}" for each in node_ids}
    return is_v2 and bool(kinds) and not any(kinds)


def read_is_fixed() -> bool:
    """`is_fixed` of the cluster that this process is connected to."""
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray._private.worker import global_worker
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    gcs = global_worker.gcs_client  # nothing public has either; Ray's own dashboard reads both so
    states = [each for each in get_cluster_resource_state(gcs).node_states if each.status != NodeStatus.DEAD]
    return is_fixed(
        gcs.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), namespace=None),
        is_autoscaler_v2(fetch_from_server=True, gcs_client=gcs),
        {node["NodeID"] for node in ray.nodes()},
        [each.ray_node_type_name or each.instance_id for each in states],
    )


def read_limits(resources: Mapping[str, float]) -> dict[str, float] | None:
    """The most of each resource that the connected cluster's autoscaler may come to; None where it does not tell.

    ``resources`` are what the cluster has now, nodes that somebody has added by hand among them.
    """
    from ray._private.state import state  # Ray's Data and Train ask there as well; nothing public says it

    limits = state.get_max_resources_from_cluster_config()
    if limits is None:
        return None
    return {key: max(limits.get(key, 0.0), resources.get(key, 0.0)) for key in {*limits, *resources}}
