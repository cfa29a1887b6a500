"""The arm's side of its talk with `benchmarks.processes`: standard output carries JSON lines and nothing else."""

import json
import os
from typing import Any, TextIO


def take_stdout() -> TextIO:
    """Return standard output for answers alone; what libraries print from now on goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def say(answers: TextIO, record: dict[str, Any]) -> None:
    """Answer with one record, at once."""
    print(json.dumps(record), file=answers, flush=True)
