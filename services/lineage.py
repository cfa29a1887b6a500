"""What every row and every file of a run carries on where it came from: constant columns, and a specification.

The values are handed to the clients by the run, which knows models, licences and the decision; a client adds the chat
template that it renders prompts with. No secret is among them.
"""

import json
from dataclasses import asdict, dataclass, replace

from configs.table import SPEC_KEY


@dataclass(frozen=True, slots=True)
class Lineage:
    """The lineage columns of `COMPLETIONS_SCHEMA`, the same for all rows of one teacher in one table.

    Example: ``Lineage(teacher_repo="Qwen/Qwen3-8B", teacher_license="apache-2.0", decision="allow@0123456789abcdef")``
    """

    teacher_repo: str | None = None
    teacher_revision: str | None = None
    teacher_license: str | None = None
    terms_id: str | None = None
    prompt_source: str | None = None
    prompt_license: str | None = None
    sampling: str | None = None
    engine: str | None = None
    template: str | None = None
    decision: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """The values under the names of their columns."""
        return asdict(self)


NO_LINEAGE = Lineage()


def add_template(lineage: Lineage, footer: dict[str, str], template: str) -> tuple[Lineage, dict[str, str]]:
    """Both with the fingerprint of the chat template; a footer without a specification stays as it is."""
    if SPEC_KEY in footer:
        spec = json.loads(footer[SPEC_KEY])
        footer = footer | {SPEC_KEY: json.dumps(spec | {"template": template}, sort_keys=True)}
    return replace(lineage, template=template), footer
