"""What a run's rows and files say of where they came from: lineage columns, and the footer's specification."""

import hashlib
import json
import re
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from cluster.claims import own_makers
from cluster.run_dir import program_version
from cluster.terms_sources import ADDITION, HOME_MADE
from configs.identity import generation_fingerprint
from configs.repository import public_address
from configs.schema import Device, EngineKind, RunConfig
from configs.table import LICENSES_JOINED, SPEC_KEY
from configs.terms.records import Decision, Role, Source
from configs.watermark import WatermarkConfig
from services.client import TableJob
from services.lineage import Lineage
from services.vllm_adapter import vllm_version

SPEC_VERSION = 1
_SECRET = re.compile(r"(token|secret|password|credentials?|key)$", re.IGNORECASE)


def trace_tables(
    config: RunConfig,
    tables: dict[str, TableJob],
    teacher: str,
    decision: Decision,
    kind: EngineKind,
    device: Device,
) -> dict[str, TableJob]:
    """The tables as one teacher fills them: with its lineage, and with its specification in the footers."""
    engine = {
        "vllm": vllm_version(),
        "kind": kind.value,
        "device": device.value,
        **_plain(config.pool[teacher].engine),
    }
    marked = {name: engine | _mark(config.pool[teacher].watermark, job) for name, job in tables.items()}
    return {
        name: replace(
            job,
            lineage=_lineage(config, job, teacher, decision, marked[name], held_out=name != "completions"),
            footer=job.footer | {SPEC_KEY: _spec(config, job, teacher, decision, marked[name])},
            own_makers=own_makers(teacher_name(config, teacher), decision.sources),
        )
        for name, job in tables.items()
    }


def teacher_name(config: RunConfig, teacher: str) -> str:
    """A teacher's name among the decision's sources: repository, directory, or that it was made here."""
    return public_address(config.pool[teacher].model or HOME_MADE)


def join_licenses(source: Source | None) -> str | None:
    """Ids of the policy's entries that count for a source; None where there are none."""
    return LICENSES_JOINED.join(_licenses(source)) or None if source else None


def _lineage(
    config: RunConfig, job: TableJob, teacher: str, decision: Decision, engine: dict[str, Any], *, held_out: bool
) -> Lineage:
    source = _find(decision, Role.TEACHER, teacher_name(config, teacher))
    prompts = None if held_out else _find(decision, Role.PROMPTS, _prompt_source(config, held_out=False))
    services = [each for each in decision.sources if each.role is Role.SERVICE]
    terms = sorted({entry for each in services for entry in _licenses(each)})
    return Lineage(
        teacher_repo=teacher_name(config, teacher),
        teacher_revision=config.pool[teacher].revision,
        teacher_license=join_licenses(source),
        terms_id=LICENSES_JOINED.join(terms) or None,
        prompt_source=_prompt_source(config, held_out=held_out),
        prompt_license=join_licenses(prompts),
        sampling=_to_json(_plain(job.sampling)),
        engine=hashlib.sha256(_to_json(engine).encode()).hexdigest()[:16],
        decision=f"{decision.verdict}@{decision.policy_digest[:16]}",
    )


def _spec(config: RunConfig, job: TableJob, teacher: str, decision: Decision, engine: dict[str, Any]) -> str:
    """The generation specification as JSON; the client adds the template's fingerprint."""
    settings = config.pool[teacher]
    return _to_json(
        {
            "version": SPEC_VERSION,
            "program": program_version(),
            "run": config.name,
            "teacher": {"name": teacher, "model": teacher_name(config, teacher), "revision": settings.revision},
            "sources": [_source(each) for each in decision.sources],
            "prompts": _plain(config.prompts),
            "sampling": _plain(job.sampling),
            "acceptance": _plain(job.acceptance),
            "engine": engine,
            "chat_template_kwargs": _clean(settings.chat_template_kwargs),
            "decision": {
                "verdict": decision.verdict.value,
                "policy_version": decision.policy_version,
                "policy_sha256": decision.policy_digest,
                "decided_on": decision.decided_on.isoformat(),
                "waivers": [_clean(each) for each in _waivers(decision)],
            },
            "generation_fingerprint": generation_fingerprint(config),
        }
    )


def _mark(watermark: WatermarkConfig | None, job: TableJob) -> dict[str, Any]:
    """The mark on a table's rows, as a part of the engine's description; greedy rows have none."""
    if watermark is None or job.sampling.temperature == 0:
        return {}
    return {"watermark": watermark.recorded}


def _prompt_source(config: RunConfig, *, held_out: bool) -> str:
    if not held_out:
        return public_address(config.prompts.source or ADDITION)
    assert config.evaluation is not None
    return public_address(config.evaluation.source or "evaluation.addition")


def _find(decision: Decision, role: Role, name: str) -> Source | None:
    return next((each for each in decision.sources if (each.role, each.name) == (role, name)), None)


def _licenses(source: Source) -> list[str]:
    return sorted({each.entry for each in source.statements if each.entry is not None})


def _source(source: Source) -> dict[str, Any]:
    told = {"role": source.role.value, "name": source.name, "revision": source.revision}
    return {**told, "base_of": source.via, "licenses": _licenses(source)}


def _waivers(decision: Decision) -> list[dict[str, Any]]:
    waivers = dict.fromkeys(each.waiver for each in decision.findings if each.waiver is not None)
    return [each.model_dump(mode="json", exclude={"document"}) for each in waivers if each is not None]


def _plain(section: BaseModel) -> dict[str, Any]:
    cleaned: dict[str, Any] = _clean(section.model_dump(mode="json", exclude_none=True))
    return cleaned


def _clean(value: Any) -> Any:
    """JSON values without what looks like a secret: keys such as ``hf_token``, logins and queries in addresses."""
    if isinstance(value, dict):
        return {key: "hidden" if _SECRET.search(key) else _clean(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_clean(each) for each in value]
    return public_address(value) if isinstance(value, str) else value


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
