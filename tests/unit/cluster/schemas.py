"""Kubernetes documents against the schemas of their kinds, as strictly as the API server with field validation."""

import gzip
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[3]
KUBERNETES = "1.37"
NO_CRDS = (
    "no custom resource definitions of KubeRay: set KUBERAY_CRDS to a directory with ray.io_rayclusters.yaml and "
    "ray.io_rayjobs.yaml, from ray-operator/config/crd/bases of github.com/ray-project/kuberay (.gz as well)"
)

# Kinds that no package carries the schemas of: their fields, written down by hand from the projects' own references.
SELECTOR = {"matchLabels": {}}
RELABELING = {"sourceLabels": {}, "targetLabel": {}, "action": {}, "regex": {}, "replacement": {}}
FIELDS: dict[str, dict[str, Any]] = {
    "monitoring.coreos.com/v1 PodMonitor": {
        "selector": SELECTOR,
        "podMetricsEndpoints": {"port": {}, "path": {}, "interval": {}, "relabelings": RELABELING},
        "jobLabel": {},
    },
    "monitoring.coreos.com/v1 PrometheusRule": {
        "groups": {
            "name": {},
            "interval": {},
            "rules": {"alert": {}, "expr": {}, "for": {}, "labels": {}, "annotations": {}},
        }
    },
    "scheduling.volcano.sh/v1beta1 Queue": {"weight": {}, "reclaimable": {}, "capability": {}},
    "kueue.x-k8s.io/v1beta2 ResourceFlavor": {"nodeLabels": {}, "tolerations": {}},
    "kueue.x-k8s.io/v1beta2 ClusterQueue": {
        "namespaceSelector": SELECTOR,
        "resourceGroups": {
            "coveredResources": {},
            "flavors": {"name": {}, "resources": {"name": {}, "nominalQuota": {}}},
        },
    },
    "kueue.x-k8s.io/v1beta2 LocalQueue": {"clusterQueue": {}},
}


def find_errors(document: dict[str, Any]) -> list[str]:
    """What the API server would refuse of a document, or would silently drop."""
    kind = f"{document['apiVersion']} {document['kind']}"
    if kind in FIELDS:
        return unknown_fields(document, {"apiVersion": {}, "kind": {}, "metadata": {}, "spec": FIELDS[kind]})
    if document["apiVersion"].startswith("ray.io/"):
        validator = jsonschema.Draft202012Validator(custom_resources()[kind])
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    return list(_core_errors(json.dumps(document)))


@cache
def _core_errors(text: str) -> tuple[str, ...]:
    try:
        kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{'.'.join(str(part) for part in error.path)}: {error.message}",)
    return ()


def unknown_fields(value: Any, known: dict[str, Any], path: str = "") -> list[str]:
    """Fields of ``value`` that are not in ``known``, where an empty dictionary stands for anything."""
    if isinstance(value, list):
        return [error for item in value for error in unknown_fields(item, known, path)]
    if not known or not isinstance(value, dict):
        return []
    errors = [f"{path}.{key} is unknown" for key in value if key not in known]
    for key in value.keys() & known.keys():
        errors += unknown_fields(value[key], known[key], f"{path}.{key}")
    return errors


@cache
def custom_resources() -> dict[str, dict[str, Any]]:
    """The schemas of KubeRay's kinds, by version and kind; empty where they are not to be found."""
    folder = Path(os.environ.get("KUBERAY_CRDS") or ROOT.parent / "shared" / "kuberay")
    found = {}
    for file in (file for name in ("rayclusters", "rayjobs") for file in folder.glob(f"ray.io_{name}*.yaml*")):
        text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        definition = yaml.load(text, yaml.CSafeLoader)["spec"]
        for version in definition["versions"]:
            name = f"{definition['group']}/{version['name']} {definition['names']['kind']}"
            found[name] = version["schema"]["openAPIV3Schema"]
    return {name: closed(schema) for name, schema in found.items() if name.startswith("ray.io/v1 ")}


def closed(schema: Any) -> Any:
    """An API server's schema as JSON schema: unknown fields, which it drops, are errors; its extensions are said."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed_part(key, value) for key, value in schema.items()}
    if result.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    is_open = result.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in result
    if isinstance(result.get("properties"), dict) and not is_open:
        result["additionalProperties"] = False
    return result


def closed_part(key: str, value: Any) -> Any:
    if key == "properties":
        return {name: closed(part) for name, part in value.items()}
    return value if key in {"enum", "default", "required", "description"} else closed(value)
