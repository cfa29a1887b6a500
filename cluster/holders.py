"""What holds the CPUs and GPUs of a cluster, in words, for whoever waits for them in vain."""

from collections.abc import Mapping

from cluster.pools import RESOURCES


def describe_resources(resources: Mapping[str, float]) -> str:
    """Resources in words: ``2 CPU, 1 GPU``."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in RESOURCES)


def describe_holders() -> str:
    """Actors and placement groups that hold CPUs or GPUs now, of every job on the connected cluster."""
    return "; ".join(_holding_actors() + _holding_groups()) or "nothing that Ray knows of"


def _holding_actors() -> list[str]:
    """Those outside placement groups, whose share is counted with the group's."""
    from ray._private.state import state  # without a dashboard the public API of actors answers nothing
    from ray.core.generated.gcs_pb2 import ActorTableData

    found = []
    for message in state._connect_and_get_accessor().get_actor_table(None, "ALIVE"):
        actor = ActorTableData.FromString(message)
        amounts = {name: actor.required_resources.get(name, 0.0) for name in RESOURCES}
        if any(amounts.values()) and not actor.placement_group_id:
            found.append(
                f"actor {actor.name or actor.class_name} of job {actor.job_id.hex()} ({describe_resources(amounts)})"
            )
    return found


def _holding_groups() -> list[str]:
    from ray.util import placement_group_table

    found = []
    for group_id, group in placement_group_table().items():
        bundles = group["bundles"].values()
        amounts = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in RESOURCES}
        if group["state"] == "CREATED" and any(amounts.values()):
            found.append(f"placement group {group['name'] or group_id} ({describe_resources(amounts)})")
    return found
