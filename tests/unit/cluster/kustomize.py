"""What `kubectl kustomize` makes of a directory, for the features that the manifests use; another one is an error."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Document = dict[str, Any]
KNOWN = {"apiVersion", "kind", "resources", "components", "patches", "replacements", "configMapGenerator"}


def load_documents(path: Path) -> list[Document]:
    """A YAML file's documents, with anchors written out."""
    return [json.loads(json.dumps(document)) for document in yaml.safe_load_all(path.read_text()) if document]


def build(directory: Path, documents: list[Document] | None = None) -> list[Document]:
    """The documents of a kustomization; those of a component are ``documents``, changed and added to."""
    [kustomization] = load_documents(directory / "kustomization.yaml")
    assert set(kustomization) <= KNOWN, f"{directory}: {set(kustomization) - KNOWN}"
    built = copy.deepcopy(documents or [])
    for name in kustomization.get("resources", []):
        path = directory / name
        built += build(path) if path.is_dir() else load_documents(path)
    for name in kustomization.get("components", []):
        built = build((directory / name).resolve(), built)
    for generator in kustomization.get("configMapGenerator", []):
        built.append(generate_config_map(directory, generator))
    for patch in kustomization.get("patches", []):
        built = apply_patch(built, patch, directory)
    for replacement in kustomization.get("replacements", []):
        replace(built, replacement)
    return built


def generate_config_map(directory: Path, generator: dict[str, Any]) -> Document:
    assert generator["options"].pop("disableNameSuffixHash"), "names with hashes are not made here"
    metadata = {"name": generator["name"], "namespace": generator["namespace"], **generator["options"]}
    data = {name: (directory / name).read_text() for name in generator["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def apply_patch(documents: list[Document], patch: dict[str, Any], directory: Path) -> list[Document]:
    text = patch.get("patch") or (directory / patch["path"]).read_text()
    operations = json.loads(json.dumps(yaml.safe_load(text)))
    if isinstance(operations, dict):
        assert operations.pop("$patch") == "delete", "merge patches replace the lists of custom resources: not used"
        return [document for document in documents if not is_selected(document, patch["target"])]
    return [
        jsonpatch.apply_patch(document, operations) if is_selected(document, patch["target"]) else document
        for document in documents
    ]


def replace(documents: list[Document], replacement: dict[str, Any]) -> None:
    source = dict(replacement["source"])
    path = source.pop("fieldPath")
    [found] = [document for document in documents if is_selected(document, source)]
    value = walk(found, path.split("."))
    for target in replacement["targets"]:
        for document in documents:
            if is_selected(document, target["select"]):
                for field_path in target["fieldPaths"]:
                    *parents, last = field_path.split(".")
                    parent = walk(document, parents)
                    assert (int(last) < len(parent)) if isinstance(parent, list) else last in parent
                    parent[int(last) if isinstance(parent, list) else last] = copy.deepcopy(value)


def walk(node: Any, path: list[str]) -> Any:
    for part in path:
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


def is_selected(document: Document, target: dict[str, str]) -> bool:
    assert set(target) <= {"kind", "name"}
    fields = {"kind": document["kind"], "name": document["metadata"]["name"]}
    return all(re.fullmatch(pattern, fields[key]) for key, pattern in target.items())
