"""``stillhouse audit``: the key's id, the mark in a text, and the mark in a student."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter, validators

from configs.watermark import WatermarkKind

if TYPE_CHECKING:
    from cluster.audit import AuditReport
    from configs.watermark import WatermarkScheme
    from services.watermark.key import WatermarkKey

KEY_VARIABLE = "STILLHOUSE_WATERMARK_KEY"

KeyEnv = Annotated[str, Parameter(help="Environment variable that holds the secret key.")]
KeyFile = Annotated[Path | None, Parameter(help="File that holds the secret key; goes before the variable.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Mark:
    """Options that say what is looked for: the key, and how text is marked with it."""

    key_env: KeyEnv = KEY_VARIABLE
    key_file: KeyFile = None
    key_id: Annotated[str | None, Parameter(help="Id that the key must have; files of a run say it themselves.")] = None
    kind: Annotated[
        WatermarkKind | None, Parameter(help="How text is marked; unset means gumbel. So with what follows.")
    ] = None
    context_tokens: Annotated[
        int | None,
        Parameter(validator=validators.Number(gte=1, lte=16), help="Tokens before a token that decide its mark; 4."),
    ] = None
    channels: Annotated[
        int | None, Parameter(validator=validators.Number(gte=1, lte=1024), help="Independent marks of the key; 1.")
    ] = None
    green_share: Annotated[
        float | None,
        Parameter(validator=validators.Number(gt=0, lt=1), help="Green part of the vocabulary, for green_list; 0.25."),
    ] = None

    def load(self, texts: str) -> "tuple[WatermarkKey, WatermarkScheme]":
        """The key, and the scheme that was asked for, else the one that the files name, else the default."""
        from cluster.audit_texts import read_mark
        from configs.watermark import WatermarkScheme
        from services.watermark.key import load_key

        asked = {name: getattr(self, name) for name in ("kind", "context_tokens", "channels", "green_share")}
        recorded = dict(read_mark(texts) or {})
        recorded_id = recorded.pop("key_id", None)
        scheme = WatermarkScheme(**recorded | {name: value for name, value in asked.items() if value is not None})
        return load_key(self.key_env, self.key_file, self.key_id or recorded_id), scheme


Tokenizer = Annotated[str | None, Parameter(help="The teacher's tokenizer, for text: a directory or OWNER/NAME.")]
Texts = Annotated[str, Parameter(help="Parquet, JSONL or text file, or a directory of Parquet files; any fsspec URI.")]
MaxTexts = Annotated[int, Parameter(validator=validators.Number(gte=1), help="Texts that are read at most.")]
Report = Annotated[Path | None, Parameter(help="File that the figures are written to, as JSON.")]
Debug = Annotated[bool, Parameter(negative="", help="Show tracebacks.")]

UNSAID = Mark()

audit = App(name="audit", help="Watermarks: whether a text carries the mark of a key, and whether a student learnt it.")


@audit.command
def key(*, key_env: KeyEnv = KEY_VARIABLE, key_file: KeyFile = None, debug: Debug = False) -> int:
    """Print the id of a secret key, which tells it from others and does not give it away.

    Example: `stillhouse audit key --key-env STILLHOUSE_WATERMARK_KEY`
    """
    from services.watermark.key import load_key

    print(load_key(key_env, key_file).key_id)
    return 0


@audit.command
def text(
    texts: Texts,
    *,
    tokenizer: Tokenizer = None,
    mark: Mark = UNSAID,
    max_texts: MaxTexts = 10_000,
    report: Report = None,
    debug: Debug = False,
) -> int:
    """Tell how likely texts without the mark are to score as high: an exact p-value. Repeats count once.

    Files of a run say how they were marked, and with which key; of other texts the options have to say it.

    Example: `stillhouse audit text essay.txt --tokenizer Qwen/Qwen3-8B --key-file watermark.key`
    """
    from cluster.audit import audit_texts
    from cluster.audit_texts import read_texts

    secret, scheme = mark.load(texts)
    made = audit_texts(read_texts(texts, tokenizer, max_texts), secret, scheme)
    return _tell(made, report)


@audit.command
def student(
    model: Annotated[str, Parameter(help="The student: a Hugging Face directory or OWNER/NAME.")],
    texts: Texts,
    *,
    base: Annotated[
        str | None, Parameter(help="What it was before it was trained; without one the test is weaker.")
    ] = None,
    tokenizer: Tokenizer = None,
    mark: Mark = UNSAID,
    decoys: Annotated[
        int, Parameter(validator=validators.Number(gte=20, lte=10_000), help="Other keys that are tried beside it.")
    ] = 100,
    positions: Annotated[
        int, Parameter(validator=validators.Number(gte=100), help="Places that are looked at, each a new context.")
    ] = 10_000,
    max_texts: MaxTexts = 10_000,
    gpu: Annotated[bool, Parameter(negative="", help="Compute on a GPU.")] = False,
    report: Report = None,
    debug: Debug = False,
) -> int:
    """Tell whether a student has learnt from marked text, by what it predicts and its base does not.

    The texts are what the student may have learnt from, in its own tokens: the teacher's answers, best of all.

    Example: `stillhouse audit student runs/quickstart/student/hf runs/quickstart/completions --base OWNER/BASE`
    """
    from cluster.audit import audit_model
    from cluster.audit_texts import read_texts
    from training.job import JobDevice

    secret, scheme = mark.load(texts)
    made = audit_model(
        model,
        base,
        read_texts(texts, tokenizer, max_texts),
        secret,
        scheme,
        num_positions=positions,
        num_decoys=decoys,
        device=JobDevice.GPU if gpu else JobDevice.CPU,
    )
    return _tell(made, report)


def _tell(made: "AuditReport", report: Path | None) -> int:
    print("\n".join(made.lines))
    if report is not None:
        made.write(report)
    return 0
