"""SEAL: checks that each planned row is there exactly once, and pins the version that training reads."""

from typing import Any

from deltalake import DeltaTable

from cluster.context import RunContext
from configs.errors import UserError
from services.dataset import seal


def seal_dataset(ctx: RunContext) -> dict[str, Any]:
    """Write ``manifest.json``; done when it pins the table's present version and no prompt was planned since."""
    versions = {
        "completions": DeltaTable(ctx.run_dir.completions_uri).version(),
        "prompts": DeltaTable(ctx.run_dir.prompts_uri).version(),
    }
    record = ctx.run_dir.phase_record("seal")
    if record is not None and record["versions"] == versions:
        return record
    return ctx.finish("seal", lambda: _seal(ctx, versions))


def _seal(ctx: RunContext, versions: dict[str, int]) -> dict[str, Any]:
    sealed = seal(ctx.run_dir.prompts_uri, ctx.run_dir.completions_uri, ctx.config.sampling.n)
    if sealed.ledger.accepted == 0:
        raise UserError(
            f"no row of {sealed.ledger.planned} was accepted, so there is nothing to train on; "
            f"look at the column reason in {ctx.run_dir.completions_uri}"
        )
    ctx.run_dir.write_json("manifest.json", sealed.to_dict())
    return {"versions": versions, "ledger": sealed.ledger.to_dict()}
