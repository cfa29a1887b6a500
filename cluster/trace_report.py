"""``stillhouse terms trace``: where a Parquet file of a run came from, told from its own footer."""

import json
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import UserError
from configs.table import SPEC_KEY


def print_origin(uri: str) -> None:
    """Print in plain words what the file's rows were made by.

    Raises:
        UserError: there is no such file, it is no Parquet file, or it does not say.
    """
    metadata = _read_metadata(uri)
    text = (metadata.metadata or {}).get(SPEC_KEY.encode())
    if text is None:
        raise UserError(
            f"{uri} does not say where it came from: its footer has no {SPEC_KEY}; it is of another program"
        )
    print("\n".join(origin_lines(json.loads(text), metadata.num_rows)))


def origin_lines(spec: dict[str, Any], num_rows: int) -> list[str]:
    """A generation specification in plain words."""
    teacher, engine, decision = spec["teacher"], dict(spec["engine"]), spec["decision"]
    mark = engine.pop("watermark", None)
    prompts = spec["prompts"].get("source") or "problems that the run made itself"
    lines = [
        f"rows       {num_rows:,} of the run {spec['run']}, made by {spec['program']}",
        f"teacher    {_model(teacher)}{f' ({name})' if (name := teacher['name']) != 'teacher' else ''}",
        f"prompts    {prompts}",
        f"sampling   {_words(spec['sampling'])}",
        f"engine     vLLM {engine['vllm']}: {_words({key: engine[key] for key in sorted(engine) if key != 'vllm'})}",
        f"template   {spec.get('template', 'not known')} (first 16 hex digits of its SHA-256)",
        f"decision   {decision['verdict'].replace('_', ' ')} on {decision['decided_on']} by policy "
        f"{decision['policy_version']}, sha256 {decision['policy_sha256'][:16]}",
    ]
    if mark is not None:
        lines.append(f"watermark  {_words(mark)}")
    for waiver in decision["waivers"]:
        lines += [
            f"waiver     {waiver['license']} of {waiver['source']} by {waiver['approver']} until {waiver['expires']},",
            f"           on the document with sha256 {waiver['document_sha256'][:16]}",
        ]
    return [*lines, "", "sources", *(f"  {_source(each)}" for each in spec["sources"])]


def _read_metadata(uri: str) -> pq.FileMetaData:
    try:
        with fsspec.open(uri, "rb") as file:
            return pq.ParquetFile(file).metadata
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{uri} cannot be read as a Parquet file ({error}); give one of a run's completions") from None


def _source(source: dict[str, Any]) -> str:
    base = f", base of {source['base_of']}" if source["base_of"] else ""
    return f"{source['role']} {_model(source, 'name')}{base}: {', '.join(source['licenses']) or 'licence waived'}"


def _model(source: dict[str, Any], key: str = "model") -> str:
    return f"{source[key]} at {source['revision']}" if source["revision"] else str(source[key])


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value not in ([], {}))
