"""The recipe's section ``gateway`` as what `services.gateway` is given: files, terms, a place before the teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.run_dir import RunDir
from configs.errors import UserError
from configs.gateway import GatewayConfig
from configs.schema import RunConfig
from services.gateway.admission import KEYS_FILE, AdmissionSpec, read_ledgered
from services.gateway.audit import LOG_FILE, check_log, default_anchor
from services.gateway.keys import KeyFile

if TYPE_CHECKING:
    from ray import serve

    from cluster.context import RunContext


def gateway_of(config: RunConfig) -> GatewayConfig:
    """Raises `UserError` when the recipe has no such section."""
    if config.gateway is None:
        raise UserError("the recipe has no section gateway; add `gateway: {}` to serve its teacher to holders of keys")
    return config.gateway


def gateway_dir(config: RunConfig) -> Path:
    """Where keys, quotas and the audit log lie. Raises `UserError` when that is no local directory."""
    chosen = gateway_of(config).directory
    if chosen is not None:
        return Path(chosen).resolve()
    root = RunDir.of(config).root
    if not isinstance(root, Path):
        raise UserError(
            f"gateway.directory must be a local directory, as {root} can hold no quotas; name one on the machine that "
            "serves"
        )
    return Path(str(root)) / "gateway"


def admission_spec(config: RunConfig) -> AdmissionSpec:
    """What decides on requests. Raises `UserError` when the terms cannot be read."""
    gateway, directory = gateway_of(config), gateway_dir(config)
    anchor = default_anchor(directory) if gateway.anchor is None else Path(gateway.anchor).resolve()
    return AdmissionSpec(gateway, str(directory), str(anchor), config.name, _read_terms(gateway))


def check_gateway(config: RunConfig) -> None:
    """Refuse what would keep the gateway from starting, before anything is: terms, keys, an audit log with a hole."""
    spec = admission_spec(config)
    directory = Path(spec.directory)
    if not KeyFile(directory / KEYS_FILE).all():
        raise UserError(
            f"there is no key in {directory / KEYS_FILE}; make one with `stillhouse gateway add-key RECIPE NAME`"
        )
    check_log(directory / LOG_FILE, Path(spec.anchor), read_ledgered(directory))


def build_ingress(ctx: "RunContext", config: GatewayConfig) -> "Callable[[serve.Application], serve.Application]":
    """Start what decides, and return what puts the HTTP side before a teacher."""
    from services.gateway.app import GatewaySpec
    from services.gateway.deployment import build_gateway, start_admission

    run = ctx.config
    spec, teacher = admission_spec(run), run.pool[run.main_teacher]
    actor = start_admission(spec, run.name)
    http = GatewaySpec(
        config=config,
        model=run.name,
        template_kwargs=teacher.chat_template_kwargs,
        request_deadline_s=run.deadlines.request,
        terms=spec.terms,
        watermark=teacher.watermark,
    )
    return lambda application: build_gateway(http, actor, application)


def _read_terms(gateway: GatewayConfig) -> str | None:
    if gateway.terms is None:
        return None
    try:
        return Path(gateway.terms).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"gateway.terms: {gateway.terms} cannot be read ({error}); name a text file") from None
