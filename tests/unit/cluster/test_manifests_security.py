"""The Kubernetes manifests are as closed as docs/security.md says."""

import re

import pytest

from tests.unit.cluster.kustomize import Document
from tests.unit.cluster.manifests import (
    KUBERAY,
    OVERLAYS,
    PROJECT,
    ROOT,
    by_kind,
    documents_of,
    pod_specs,
    ray_specs,
)

pytestmark = pytest.mark.unit

SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY$", re.IGNORECASE)


def test_every_ray_container_asks_for_the_token_of_the_secret(documents: list[Document]) -> None:
    ours = [c for _, pod in pod_specs(documents) for c in pod["containers"] if "stillhouse:" in c["image"]]
    ours += [spec["autoscalerOptions"] for spec in ray_specs(documents) if "autoscalerOptions" in spec]
    for container in ours:
        env = {entry["name"]: entry for entry in container["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        token = env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert token == {"name": "stillhouse-ray-token", "key": "auth_token"}
    for spec in ray_specs(documents):
        assert spec["authOptions"] == {"mode": "token", "secretName": "stillhouse-ray-token"}


def test_secrets_are_named_and_never_written(documents: list[Document]) -> None:
    assert by_kind(documents, "Secret") == []
    entries = [e for _, pod in pod_specs(documents) for c in pod["containers"] for e in c.get("env", [])]
    assert [entry["name"] for entry in entries if SECRET_NAMES.search(entry["name"]) and "value" in entry] == []
    passwords = [spec.get("gcsFaultToleranceOptions", {}).get("redisPassword", {}) for spec in ray_specs(documents)]
    assert [password for password in passwords if "value" in password] == []


def test_pods_run_without_privileges(documents: list[Document]) -> None:
    """What the namespace's pod security standard `restricted` asks for."""
    containers = [(where, c) for where, pod in pod_specs(documents) for c in pod["containers"]]
    containers += [("autoscaler", s["autoscalerOptions"]) for s in ray_specs(documents) if "autoscalerOptions" in s]
    for where, pod in pod_specs(documents):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, where
        assert context["runAsUser"] > 0, where
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), where
        assert [v for v in pod.get("volumes", []) if "hostPath" in v] == [], where
    for where, container in containers:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, where
        assert context["capabilities"] == {"drop": ["ALL"]}, where
        assert "privileged" not in context, where
    [namespace] = by_kind(documents, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_only_the_head_talks_to_kubernetes(documents: list[Document]) -> None:
    pods = [(where, pod) for where, pod in pod_specs(documents) if "headGroupSpec" not in where]
    assert [where for where, pod in pods if pod.get("automountServiceAccountToken") is not False] == []


def test_resources_are_set_and_memory_is_not_overcommitted(documents: list[Document]) -> None:
    containers = [c for _, pod in pod_specs(documents) for c in pod["containers"]]
    containers += [spec["autoscalerOptions"] for spec in ray_specs(documents) if "autoscalerOptions" in spec]
    for container in containers:
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory"} <= requests.keys() & limits.keys()
        assert requests["memory"] == limits["memory"]


def test_images_have_an_exact_tag_and_ours_is_this_version(documents: list[Document]) -> None:
    images = {c["image"] for _, pod in pod_specs(documents) for c in pod["containers"]}
    assert [image for image in images if not re.search(r":v?\d+\.\d+\.\d+[\w.-]*$", image)] == []
    ours = {image.rpartition(":")[2] for image in images if "stillhouse:" in image}
    assert ours == {f"{PROJECT['version']}-gpu"}
    assert (ROOT / "docker" / "Dockerfile.gpu").exists()


def test_no_manifest_lets_models_bring_code() -> None:
    for path in [*KUBERAY.rglob("*.yaml"), *(ROOT / "cluster" / "ray-up").glob("*.yaml")]:
        assert "trust_remote_code" not in path.read_text(), path


def test_network_is_closed_but_for_what_is_listed() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in by_kind(documents_of("overlays/job"), "NetworkPolicy")}
    assert policies["deny-by-default"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        for rule in spec.get("ingress", []):
            assert rule.get("from"), f"{name} lets anyone in"
            assert all("ipBlock" not in peer for peer in rule["from"]), f"{name} lets addresses in"
            selected = [peer["podSelector"].get("matchLabels") for peer in rule["from"]]
            assert all(selected), f"{name} lets whole namespaces in"
    for overlay in OVERLAYS:
        closed = by_kind(documents_of(f"overlays/{overlay}"), "NetworkPolicy")
        assert "deny-by-default" in {policy["metadata"]["name"] for policy in closed}
