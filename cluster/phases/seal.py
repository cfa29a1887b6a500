"""SEAL: checks that each planned row is there exactly once, and pins the version that training reads."""

from typing import Any

import pyarrow.parquet as pq
from deltalake import DeltaTable

from cluster.claims import claim_words, own_makers_by_row
from cluster.context import RunContext
from cluster.terms import decide, recorded_sources
from configs.errors import UserError
from services.claim_count import ClaimCount
from services.dataset import seal
from services.table import remove_orphans

ORPHAN_GRACE_S = 86_400.0  # longer than any attempt that could still commit its file


def seal_dataset(ctx: RunContext) -> dict[str, Any]:
    """Write ``manifest.json``; done when it pins the table's present version and no prompt was planned since."""
    record = ctx.run_dir.phase_record("seal")
    if record is not None and record["versions"] == _versions(ctx):
        return record
    return ctx.finish("seal", lambda: _seal(ctx))


def _versions(ctx: RunContext) -> dict[str, int]:
    return {
        "completions": DeltaTable(ctx.run_dir.completions_uri).version(),
        "prompts": DeltaTable(ctx.run_dir.prompts_uri).version(),
    }


def _seal(ctx: RunContext) -> dict[str, Any]:
    remove_orphans(ctx.run_dir.completions_uri, ORPHAN_GRACE_S)
    # Rows that are sealed again were made from what was recorded with them, whatever the recipe says by now.
    with ctx.terms_work("record"):
        decision = decide(ctx.config, recorded_sources(ctx.run_dir.read_json("manifest.json")))
    count = ClaimCount(own_makers_by_row(decision.sources))

    def look(file: pq.ParquetFile) -> None:
        with ctx.terms_work("claims"):
            count.add(file)

    sealed = seal(ctx.run_dir.prompts_uri, ctx.run_dir.completions_uri, ctx.config.sampling.n, look)
    if sealed.ledger.accepted == 0:
        raise UserError(
            f"no row of {sealed.ledger.planned} was accepted, so there is nothing to train on; "
            f"look at the column reason in {ctx.run_dir.completions_uri}"
        )
    claims = count.to_dict()
    if claims["makers"]:
        ctx.progress.say(f"seal: {claim_words(claims)} (`stillhouse terms lint {ctx.run_dir.root}`)")
    manifest = {**sealed.to_dict(), "terms": decision.public_record(), "claims": claims}
    marks = {name: each.recorded for name, each in ctx.config.watermarks.items()}
    ctx.run_dir.write_json("manifest.json", manifest | ({"watermarks": marks} if marks else {}))
    return {"versions": _versions(ctx), "ledger": sealed.ledger.to_dict(), "claims": claims}
