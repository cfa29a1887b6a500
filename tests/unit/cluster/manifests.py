"""The manifests as Kubernetes gets them: every kustomization built, and ways to look into the result."""

import json
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.unit.cluster.kustomize import Document, build

ROOT = Path(__file__).resolve().parents[3]
KUBERAY = ROOT / "cluster" / "kuberay"
COMPONENTS = sorted(path.name for path in (KUBERAY / "components").iterdir())  # each on its own, upon the base
OVERLAYS = sorted(path.name for path in (KUBERAY / "overlays").iterdir())
APPLIED = ["base", *(f"overlays/{name}" for name in OVERLAYS)]
BUILDS = [*APPLIED, *(f"components/{name}" for name in COMPONENTS)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@cache
def build_text(name: str) -> str:
    """Documents as text, so that no test can change those of another."""
    if not name.startswith("components/"):
        return json.dumps(build(KUBERAY / name))
    documents = build(KUBERAY / "base")
    return json.dumps(build(KUBERAY / name, documents))


def documents_of(name: str) -> list[Document]:
    documents: list[Document] = json.loads(build_text(name))
    return documents


def pod_specs(documents: list[Document]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that a document asks for, by where it stands."""

    def walk(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(node, dict):
            if isinstance(node.get("containers"), list):
                yield path, node
            for key, value in node.items():
                yield from walk(value, f"{path}.{key}")
        elif isinstance(node, list):
            for index, value in enumerate(node):
                yield from walk(value, f"{path}.{index}")

    for document in documents:
        yield from walk(document, document["kind"])


def ray_specs(documents: list[Document]) -> list[dict[str, Any]]:
    """The cluster of each RayCluster and RayJob."""
    clusters = [document["spec"] for document in documents if document["kind"] == "RayCluster"]
    return clusters + [document["spec"]["rayClusterSpec"] for document in documents if document["kind"] == "RayJob"]


def by_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]
