"""A marked run on the real engine: the mark is in its rows, its files say so, and samples of a prompt stay apart."""

import json
from pathlib import Path

import polars
import pytest

from configs.watermark import WatermarkScheme
from services.watermark.key import WatermarkKey
from services.watermark.texts import TextScorer, log10_p_value, nothing_scored
from tests.integration.program import stillhouse, write_lines, write_recipe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

VARIABLE, SECRET = "TEST_WATERMARK_KEY", "the secret of a marked run, 32 letters or more"
SAMPLES = 8


def test_marked_run_has_the_mark_of_its_key_in_rows_and_footers(
    tmp_path: Path, qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"{n}+{n}="} for n in range(6)])
    mark = {"key_env": VARIABLE, "key_id": WatermarkKey.of(SECRET).key_id, "channels": SAMPLES}
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        teacher={"model": str(qwen3), "engine": {"dtype": "float32", "max_model_len": 64}, "watermark": mark},
        prompts={"source": str(tmp_path / "prompts.jsonl")},
        sampling={"n": SAMPLES, "temperature": 1.0, "top_k": 30, "max_tokens": 40, "truncation": "keep"},
        student={"model": str(qwen3)},
    )
    outcome = stillhouse("generate", str(recipe))
    assert outcome.code == 0, outcome.err
    assert SECRET not in outcome.out + outcome.err

    rows = polars.read_delta(str(tmp_path / "run" / "completions"))
    assert rows.height == 6 * SAMPLES
    written = rows.filter(polars.col("num_completion_tokens") > 2)  # the model may end anywhere, also at once
    assert written.height > 4 * SAMPLES
    assert written.unique(["prompt_id", "completion"]).height == written.height
    texts = rows["completion_token_ids"].to_list()
    assert log10_p(SECRET, texts) < -20
    assert log10_p("another secret than that of the marked run", texts) > -4

    # What the files say of themselves is enough to find it again.
    assert (
        json.loads((tmp_path / "run" / "manifest.json").read_text())["watermarks"]["teacher"]["key_id"]
        == mark["key_id"]
    )
    found = stillhouse("audit", "text", str(tmp_path / "run" / "completions"), "--key-env", VARIABLE)
    assert found.code == 0, found.err
    assert "verdict    the mark of this key is in the text" in found.out


def log10_p(secret: str, texts: list[list[int]]) -> float:
    """Of all texts together, each sample in a channel of its own."""
    scheme = WatermarkScheme(channels=SAMPLES)
    scorer = TextScorer(WatermarkKey.of(secret), scheme)
    return log10_p_value(sum((scorer.score(text).added for text in texts), nothing_scored(scheme)), scheme)
