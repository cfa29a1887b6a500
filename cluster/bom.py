"""The bill of materials of a student as a CycloneDX 1.6 ML-BOM, and what it shares with the one in SPDX."""

import json
import uuid
from typing import Any

from cluster.cards import sampling_words, source_words
from cluster.release_facts import HubLicense, ReleaseFacts, known_entries, public_name
from configs.repository import is_repository
from configs.terms.policy import load_policy
from configs.terms.records import Role, Source

HUB = "https://huggingface.co/"
LIMITATION = "Imitates its teacher's answers, mistakes included; measured on the run's held-out problems alone."


def cyclonedx_bom(facts: ReleaseFacts, weights: dict[str, str]) -> str:
    """The CycloneDX document as JSON."""
    data = {
        "bom-ref": "data",
        "type": "data",
        "name": f"{facts.name}: prompts and completions",
        "version": str(facts.manifest["version"]),
        **_licenses(facts.data_license),
        "data": [{"type": "dataset", "name": "completions", "description": _data_words(facts)}],
    }
    student = {
        "bom-ref": "student",
        "type": "machine-learning-model",
        "name": facts.name,
        "version": facts.version,
        **_licenses(facts.student_license),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "text-generation",
                "architectureFamily": "transformer",
                "datasets": [{"ref": "data"}],
                "inputs": [{"format": "string"}],
                "outputs": [{"format": "string"}],
            },
            "quantitativeAnalysis": {
                "performanceMetrics": [{"type": key, "value": value} for key, value in metrics(facts)]
            },
            "considerations": {"technicalLimitations": [LIMITATION]},
            "properties": [{"name": f"stillhouse:{key}", "value": value} for key, value in hyperparameters(facts)],
        },
        "components": [
            {"type": "file", "name": path, "hashes": [{"alg": "SHA-256", "content": digest}]}
            for path, digest in weights.items()
        ],
    }
    sources = list(enumerate(facts.decision.sources))
    components = [_component(number, source) for number, source in sources if source.role is not Role.SERVICE]
    services = [_described(number, source) for number, source in sources if source.role is Role.SERVICE]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{document_id(facts, weights)}",
        "version": 1,
        "metadata": {
            "timestamp": facts.created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": facts.program}]},
            "component": student,
        },
        "components": [data, *components],
        **({"services": services} if services else {}),
        "dependencies": [
            {"ref": "student", "dependsOn": ["data", *_references(facts, of_student=True)]},
            {"ref": "data", "dependsOn": _references(facts, of_student=False)},
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _component(number: int, source: Source) -> dict[str, Any]:
    component = {
        "type": "data" if source.role is Role.PROMPTS else "machine-learning-model",
        **_described(number, source),
    }
    if source.revision is not None:
        component["version"] = source.revision
    if source.role is not Role.PROMPTS and is_repository(source.name):
        component["externalReferences"] = [{"type": "distribution", "url": HUB + source.name}]
    return component


def _described(number: int, source: Source) -> dict[str, Any]:
    """What components and services have in common; of a service it is all there is to say."""
    entries = known_entries(source, load_policy())
    licenses = [
        {"license": {"name": entry.name, **({"url": entry.url} if entry.url else {})}} for entry in entries if entry
    ]
    return {
        "bom-ref": f"source-{number}",
        "name": public_name(source),
        "description": source_words(source),
        **({"licenses": licenses} if licenses else {}),
    }


def _references(facts: ReleaseFacts, *, of_student: bool) -> list[str]:
    roles = [source.role for source in facts.decision.sources]
    return [f"source-{number}" for number, role in enumerate(roles) if (role is Role.STUDENT) is of_student]


def _licenses(license_: HubLicense) -> dict[str, Any]:
    if license_.spdx is not None:
        return {"licenses": [{"expression": license_.spdx}]}
    return {"licenses": [{"license": {"name": license_.license_name or license_.license}}]}


def metrics(facts: ReleaseFacts) -> list[tuple[str, str]]:
    """What was measured, by name."""
    accuracy = facts.report["accuracy"] or {}
    found = [(f"accuracy of {who.replace('_', ' ')}", value) for who, value in accuracy.items()]
    found.append(("gap closed", facts.report["gap_closed"]))
    found.append(("loss of the last step (nats a token)", facts.report["training"]["final_loss"]))
    return [(name, f"{value:.6g}") for name, value in found if value is not None]


def hyperparameters(facts: ReleaseFacts) -> list[tuple[str, str]]:
    """How the student was trained, by key."""
    training = facts.config.training
    return [
        ("num_steps", str(facts.report["training"]["num_steps"])),
        ("learning_rate", f"{training.optimizer.learning_rate:g}"),
        ("schedule", training.optimizer.schedule.value),
        ("sequence_length", str(training.sequence_length)),
        ("dtype", training.dtype.value),
        ("seed", str(training.seed)),
    ]


def _data_words(facts: ReleaseFacts) -> str:
    ledger = facts.manifest["ledger"]
    return f"{ledger['planned']} rows, {ledger['accepted']} of them accepted; sampling: {sampling_words(facts.config)}"


def document_id(facts: ReleaseFacts, weights: dict[str, str]) -> uuid.UUID:
    """An identity of this release's documents."""
    return uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([facts.name, facts.created.isoformat(), weights], sort_keys=True))
