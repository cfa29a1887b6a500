"""What Ray Serve says of applications, as a test has it."""

from collections.abc import Mapping

from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ServeStatus,
)


def application(replicas: Mapping[str, int], status: ApplicationStatus, message: str = "") -> ApplicationStatusOverview:
    """One of a single deployment with so many replicas in each state, which says ``message``."""
    deployment = DeploymentStatusOverview(
        status=DeploymentStatus.HEALTHY,
        status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
        replica_states=dict(replicas),
        message=message,
    )
    return ApplicationStatusOverview(
        status=status, message="", last_deployed_time_s=0.0, deployments={"teacher": deployment}
    )


def serve_status(**applications: ApplicationStatusOverview) -> ServeStatus:
    """All that Serve says."""
    return ServeStatus(applications=applications)
