"""The Kubernetes manifests: valid for those who read them, and meaning what docs/cluster.md says."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobDetails

from cluster.jobs import Metadata, stop_wait_s
from cluster.metrics import METRICS
from cluster.submit import COMMANDS
from configs.load import load_run_config
from configs.schema import RunConfig
from tests.unit.cluster.kustomize import Document, load_documents
from tests.unit.cluster.manifests import (
    BUILDS,
    COMPONENTS,
    KUBERAY,
    OVERLAYS,
    PROJECT,
    ROOT,
    by_kind,
    documents_of,
    pod_specs,
    ray_specs,
)
from tests.unit.cluster.schemas import FIELDS, NO_CRDS, custom_resources, find_errors

pytestmark = pytest.mark.unit


# --- validity -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not custom_resources(), reason=NO_CRDS)
@pytest.mark.parametrize("name", BUILDS)
def test_ray_documents_are_valid(name: str) -> None:
    ray = [document for document in documents_of(name) if document["apiVersion"] == "ray.io/v1"]
    assert [error for document in ray for error in find_errors(document)] == []


@pytest.mark.parametrize("name", BUILDS)
def test_other_documents_are_valid(name: str) -> None:
    others = [document for document in documents_of(name) if document["apiVersion"] != "ray.io/v1"]
    assert [(document["kind"], error) for document in others for error in find_errors(document)] == []


@pytest.mark.skipif(not custom_resources(), reason=NO_CRDS)
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["spec", "headGroupSpec", "template", "spec", "conatiners"], [], "conatiners"),
        (["spec", "autoscalerOptions", "version"], "v3", "v3"),
        (["spec", "workerGroupSpecs", 0, "minReplicas"], "none", "none"),
    ],
)
def test_a_mistake_in_a_ray_document_is_found(path: list[Any], value: Any, said: str) -> None:
    [cluster] = by_kind(documents_of("base"), "RayCluster")
    node: Any = cluster
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    assert any(said in error for error in find_errors(cluster))


def test_a_mistake_in_another_document_is_found() -> None:
    policy = by_kind(documents_of("components/network-policy"), "NetworkPolicy")[0]
    assert find_errors(policy) == []
    policy["spec"]["podSelektor"] = {}
    assert any("podSelektor" in error for error in find_errors(policy))
    monitor = by_kind(documents_of("components/monitoring"), "PodMonitor")[0]
    monitor["spec"]["podMetricsEndpoints"][0]["prot"] = "metrics"
    assert find_errors(monitor) == [".spec.podMetricsEndpoints.prot is unknown"]


def test_every_hand_written_schema_is_used() -> None:
    found = {f"{d['apiVersion']} {d['kind']}" for name in BUILDS for d in documents_of(name)}
    assert set(FIELDS) <= found


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")
@pytest.mark.parametrize("name", [f"overlays/{name}" for name in OVERLAYS])
def test_kustomize_makes_the_same(name: str) -> None:
    done = subprocess.run(["kubectl", "kustomize", KUBERAY / name], capture_output=True, text=True)
    if "unknown command" in done.stderr:
        pytest.skip("this kubectl has no kustomize")
    assert done.returncode == 0, done.stderr
    theirs = [json.dumps(document, sort_keys=True) for document in yaml.safe_load_all(done.stdout)]
    assert sorted(theirs) == sorted(json.dumps(document, sort_keys=True) for document in documents_of(name))


def test_a_document_is_there_once(documents: list[Document]) -> None:
    names = [(d["apiVersion"], d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(set(names)) == len(names)


def test_every_component_is_in_an_overlay() -> None:
    text = "".join((KUBERAY / "overlays" / name / "kustomization.yaml").read_text() for name in OVERLAYS)
    assert [name for name in COMPONENTS if f"components/{name}\n" not in text] == []


def test_documents_are_in_the_namespace(documents: list[Document]) -> None:
    without = {"Namespace", "Queue", "ResourceFlavor", "ClusterQueue"}
    outside = [d["kind"] for d in documents if d["metadata"].get("namespace") != "stillhouse"]
    assert set(outside) <= without


# --- what the manifests mean ----------------------------------------------------------------------------------------


def test_ray_version_is_the_one_in_the_image(documents: list[Document]) -> None:
    [pin] = [requirement for requirement in PROJECT["dependencies"] if requirement.startswith("ray[")]
    assert {spec["rayVersion"] for spec in ray_specs(documents)} == {pin.partition("==")[2]}


def test_no_work_lands_on_the_head(documents: list[Document]) -> None:
    assert ray_specs(documents)
    assert {spec["headGroupSpec"]["rayStartParams"]["num-cpus"] for spec in ray_specs(documents)} == {"0"}


def test_groups_scale_from_nothing_with_the_second_autoscaler() -> None:
    [spec] = ray_specs(documents_of("overlays/production-job"))
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert list(groups) == ["cpu", "teacher-gpu", "student-gpu"]
    assert {group["minReplicas"] for group in groups.values()} == {0}
    pools = {name: group["labels"]["stillhouse/pool"] for name, group in groups.items()}
    assert pools == {"cpu": "cpu", "teacher-gpu": "teacher", "student-gpu": "student"}


def test_gpu_groups_offer_what_the_recipe_asks_for() -> None:
    recipe = load_run_config(ROOT / "configs" / "recipes" / "qwen3-32b-to-1.7b.yaml", ())
    [spec] = ray_specs(documents_of("overlays/job"))
    for group in spec["workerGroupSpecs"][1:]:
        offered = json.loads(json.loads(group["rayStartParams"]["resources"].strip("'")))
        assert f"accelerator_type:{recipe.teacher.accelerator_type}" in offered
        [container] = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] >= recipe.teacher.engine.tensor_parallel_size


def test_gpu_pods_drain_for_as_long_as_they_have_to_end() -> None:
    [spec] = ray_specs(documents_of("overlays/job"))
    for group in spec["workerGroupSpecs"][1:]:
        pod = group["template"]["spec"]
        environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
        drain_s = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] or 0)
        assert 0 < pod["terminationGracePeriodSeconds"] - drain_s <= 30, group["groupName"]


def test_job_runs_a_command_that_resumes_and_has_an_end() -> None:
    [job] = by_kind(documents_of("overlays/job"), "RayJob")
    spec = job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"]
    program, command, recipe, *overrides = shlex.split(spec["entrypoint"])
    assert program == "stillhouse"
    assert command in COMMANDS
    config: RunConfig = load_run_config(ROOT / Path(recipe).relative_to("/opt/stillhouse"), tuple(overrides))
    mounted = [c["volumeMounts"] for _, pod in pod_specs([job]) for c in pod["containers"] if "volumeMounts" in c]
    assert len(mounted) == 4
    assert all([mount["mountPath"] for mount in mounts] == ["/mnt/runs"] for mounts in mounted)
    assert (config.run_dir or "").startswith("/mnt/runs/")
    known = Metadata(config.name, command, str(Path(recipe).relative_to("/opt/stillhouse")), config.run_dir or "")
    assert spec["metadata"] == known.to_ray()  # without it `stillhouse jobs` would not show the job
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    details = JobDetails(type="SUBMISSION", status="RUNNING", entrypoint=spec["entrypoint"], runtime_env=environment)
    assert stop_wait_s(details) == config.deadlines.shutdown
    [cluster] = ray_specs([job])
    most = [
        group["maxReplicas"]
        * group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0)
        for group in cluster["workerGroupSpecs"]
    ]
    assert config.cluster.max_gpus == sum(most)  # Ray does not tell it of KubeRay's autoscaler


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_of_a_job_has_its_cluster_inside_and_no_other(name: str) -> None:
    documents = documents_of(f"overlays/{name}")
    jobs, clusters = by_kind(documents, "RayJob"), by_kind(documents, "RayCluster")
    assert (len(jobs), len(clusters)) == ((1, 0) if "job" in name else (0, 1))
    [found] = jobs or clusters
    assert found["metadata"]["labels"]["app.kubernetes.io/name"] == "stillhouse"


def test_components_change_the_cluster_that_a_job_brings() -> None:
    [production] = by_kind(documents_of("overlays/production-job"), "RayJob")
    assert production["spec"]["rayClusterSpec"]["tlsOptions"] == {"enabled": True}
    [queued] = by_kind(documents_of("overlays/job-kueue"), "RayJob")
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "stillhouse"
    [placed] = by_kind(documents_of("overlays/job-volcano"), "RayJob")
    assert placed["metadata"]["labels"]["volcano.sh/queue-name"] == "stillhouse"


def test_spot_is_for_teachers_and_not_for_the_head_and_the_student() -> None:
    [spec] = ray_specs(documents_of("components/spot"))
    pods = {group["groupName"]: group["template"]["spec"] for group in spec["workerGroupSpecs"]}
    pods["head"] = spec["headGroupSpec"]["template"]["spec"]
    operators = {}
    for name, pod in pods.items():
        affinity = pod.get("affinity", {}).get("nodeAffinity", {})
        terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
        operators[name] = {expression["operator"] for term in terms for expression in term["matchExpressions"]}
    assert operators == {"head": {"NotIn"}, "cpu": set(), "teacher-gpu": {"In"}, "student-gpu": {"NotIn"}}


def test_kueue_gets_a_cluster_of_fixed_size_within_its_quota() -> None:
    documents = documents_of("overlays/job-kueue")
    [spec] = ray_specs(documents)
    assert spec["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in spec
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == group["maxReplicas"] == group["replicas"] > 0
        assert "idleTimeoutSeconds" not in group
    [queue] = by_kind(documents, "ClusterQueue")
    [flavor] = queue["spec"]["resourceGroups"][0]["flavors"]
    quota = {resource["name"]: resource["nominalQuota"] for resource in flavor["resources"]}
    requests = [c["resources"]["requests"]["cpu"] for _, pod in pod_specs(documents) for c in pod["containers"]]
    assert sum(float(cpu.replace("500m", "0.5")) for cpu in requests) <= quota["cpu"]


def test_redis_and_the_cluster_share_a_password_and_an_address() -> None:
    documents = documents_of("components/gcs-redis")
    [spec] = ray_specs(documents)
    options = spec["gcsFaultToleranceOptions"]
    [service] = by_kind(documents, "Service")
    [store] = by_kind(documents, "StatefulSet")
    assert options["redisAddress"] == f"redis://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    [container] = store["spec"]["template"]["spec"]["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["REDIS_PASSWORD"]["valueFrom"] == options["redisPassword"]["valueFrom"]


def test_scraped_ports_are_the_containers_own() -> None:
    documents = documents_of("components/monitoring")
    [spec] = ray_specs(documents)
    head = {port["name"] for port in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]}
    monitors = {d["metadata"]["name"]: d for d in by_kind(documents, "PodMonitor")}
    scraped = {e["port"] for e in monitors["stillhouse-head"]["spec"]["podMetricsEndpoints"]}
    assert scraped == {"metrics", "as-metrics", "dash-metrics"}
    assert scraped <= head


def alarms() -> list[dict[str, Any]]:
    [rules] = load_documents(KUBERAY / "components" / "monitoring" / "rules.yaml")
    return [rule for group in rules["spec"]["groups"] for rule in group["rules"]]


def test_alarms_are_about_metrics_that_exist() -> None:
    named = {name for alarm in alarms() for name in re.findall(r"ray_stillhouse_\w+", alarm["expr"])}
    assert named
    assert named - {metric.exported_name for metric in METRICS} == set()


def test_every_alarm_has_its_cure_on_the_page() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), flags=re.MULTILINE)
    assert [alarm["alert"] for alarm in alarms()] == headings
    assert all(alarm["annotations"]["summary"] for alarm in alarms())
