"""``stillhouse gateway``: makes, lists and revokes API keys, and checks the audit log."""

import sys
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from configs.errors import UserError

if TYPE_CHECKING:
    from services.gateway.keys import KeyFile

Recipe = Annotated[Path, Parameter(help="Recipe file with a section gateway.")]
Overrides = Annotated[str, Parameter(help="Overrides as section.key=value, such as run_dir=/mnt/run.")]
Name = Annotated[str, Parameter(help="Whose key it is, in the words of your own lists.")]
Debug = Annotated[bool, Parameter(negative="", help="Show tracebacks.")]
Limit = Annotated[int | None, Parameter(help="This key's own limit; unset takes gateway.key_limits.")]

gateway = App(name="gateway", help="API keys and audit log of the teacher's gateway (`stillhouse serve`).")


@gateway.command
def add_key(
    recipe: Recipe,
    name: Name,
    *overrides: Overrides,
    expires: Annotated[date | None, Parameter(help="Last day on which it counts (YYYY-MM-DD, UTC).")] = None,
    model: Annotated[tuple[str, ...], Parameter(help="A model that it may use; unset means every one.")] = (),
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    lifetime_tokens: Limit = None,
    debug: Debug = False,
) -> int:
    """Make an API key and print it, once: only its hash is kept.

    Example: `stillhouse gateway add-key RECIPE ada --lifetime-tokens 1000000 --expires 2027-06-30`
    """
    from services.gateway.keys import make_key, to_text

    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "lifetime_tokens": lifetime_tokens,
    }
    for key, value in limits.items():
        if value is not None and value < 1:
            raise UserError(f"--{key.replace('_', '-')} must be at least 1, not {value}")
    ends = None if expires is None else to_text(datetime.combine(expires + timedelta(days=1), time(), UTC))
    secret, key_record = make_key(name, datetime.now(UTC), expires=ends, models=tuple(model), **limits)
    _key_file(recipe, overrides).add(key_record)
    print(secret)
    print(f"key {key_record.key_id} of {name}; it is shown this once", file=sys.stderr)
    return 0


@gateway.command
def list_keys(recipe: Recipe, *overrides: Overrides, debug: Debug = False) -> int:
    """List the keys, their state and what each has used.

    Example: `stillhouse gateway list-keys RECIPE`
    """
    from cluster.gateway import gateway_dir
    from configs.load import load_run_config
    from services.gateway.admission import LEDGER_FILE
    from services.gateway.ledger import Ledger, Usage

    path = gateway_dir(load_run_config(recipe, overrides)) / LEDGER_FILE
    ledger, now = Ledger(path) if path.exists() else None, datetime.now(UTC)
    for key in _key_file(recipe, overrides).all():
        state = "revoked" if key.revoked else "expired" if key.is_expired(now) else "counts"
        usage = ledger.usage(key.key_id) if ledger else Usage()
        quota = "" if key.lifetime_tokens is None else f" of {key.lifetime_tokens:,}"
        tokens = f"{usage.used:,}{quota} tokens used, {usage.reserved:,} reserved"
        print(f"{key.key_id}  {key.name}  {state}  {usage.requests:,} requests, {tokens}")
    if ledger:
        ledger.close()
    return 0


@gateway.command
def revoke_key(recipe: Recipe, name: Name, *overrides: Overrides, debug: Debug = False) -> int:
    """Revoke the key of this name; it counts for no request from then on, without a restart.

    Example: `stillhouse gateway revoke-key RECIPE ada`
    """
    key = _key_file(recipe, overrides).revoke(name, datetime.now(UTC))
    print(f"key {key.key_id} of {name} is revoked")
    return 0


@gateway.command
def verify_log(
    directory: Annotated[Path, Parameter(help="The gateway's directory, such as runs/NAME/gateway.")],
    *,
    anchor: Annotated[Path | None, Parameter(help="The anchor; unset takes DIRECTORY-anchor.json.")] = None,
    debug: Debug = False,
) -> int:
    """Check the audit log, and name the first entry that is missing or was changed. Exits with 2 when it does not hold.

    Example: `stillhouse gateway verify-log runs/quickstart/gateway`
    """
    from services.gateway.admission import LEDGER_FILE
    from services.gateway.audit import LOG_FILE, default_anchor, verify
    from services.gateway.ledger import read_audited

    log, anchor = directory / LOG_FILE, anchor or default_anchor(directory)
    ledgered = read_audited(directory / LEDGER_FILE)
    if not log.exists() and not anchor.exists() and ledgered is None:
        raise UserError(f"there is no audit log {log}, no anchor of one, and no ledger that knows of one")
    verdict = verify(log, anchor, ledgered)
    if verdict.fault is not None:
        raise UserError(f"{log} does not hold: {verdict.fault}")
    print(f"{log} holds: {verdict.entries:,} entries, head {verdict.head}")
    return 0


def _key_file(recipe: Path, overrides: tuple[str, ...]) -> "KeyFile":
    from cluster.gateway import gateway_dir
    from configs.load import load_run_config
    from services.gateway.admission import KEYS_FILE
    from services.gateway.keys import KeyFile

    return KeyFile(gateway_dir(load_run_config(recipe, overrides)) / KEYS_FILE)
