"""The cost ledger, against counts by hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.context import RunContext
from cluster.cost import build_cost, compare
from cluster.cost_words import cost_lines
from cluster.progress import Progress
from cluster.report import build_costed_report, build_report
from cluster.usage import find_usage
from cluster.weights import Weights, count_weights
from configs.prices import PriceTable, load_prices
from tests.unit.cluster.releases import BODY, HEAD, make_student, make_weights
from tests.unit.cluster.runs import SECONDS, make_run
from tests.unit.configs.trees import make_config
from tests.unit.training.tiny import LLAMA
from training.flops import count_flops

pytestmark = pytest.mark.unit


def priced(**usd_per_hour: float) -> PriceTable:
    """The table that ships, with some prices of the test's own."""
    table = dict(load_prices().root)
    return PriceTable(
        {**table, **{k: table[k].model_copy(update={"usd_per_hour": v}) for k, v in usd_per_hour.items()}}
    )


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[RunContext]:
    """A run up to its evaluation, of a teacher that lies in a directory."""
    teacher = make_weights(tmp_path / "teacher")
    run_dir = make_run(tmp_path / "run")
    config = make_config(
        run_dir=str(tmp_path / "run"),
        teacher={"model": str(teacher)},
        terms={"teacher": {"license": "own"}},
        evaluation={"addition": {"num_problems": 500}},
    )
    with Progress(config.name, run_dir) as progress, RunContext(config, run_dir, progress) as ctx:
        make_student(ctx)
        yield ctx
        assert not ctx.has_session


def test_cost_counts_tokens_operations_seconds_and_dollars(ctx: RunContext) -> None:
    report = build_report(ctx.run_dir, "small")
    cost = build_cost(ctx, report, priced(cpu_core=3.6))
    prompt = cost["tokens"]["prompt.teacher"]
    assert cost["tokens"] == {
        "prompt.teacher": prompt,
        "completion.teacher": 20,
        "student_rows": 400,
        "student_loss": 321,
    }
    assert cost["weights"] == {key: {"body": BODY, "head": HEAD} for key in ("teacher.teacher", "student")}
    generate, train = 2 * (BODY * (prompt + 20) + HEAD * 20), 6 * (BODY * 400 + HEAD * 321)
    assert cost["flops"] == {"generate": generate, "train": train, "total": generate + train}
    seconds = sum(SECONDS[phase] for phase in ("plan", "generate", "train", "evaluate"))
    seal = ctx.run_dir.phase_record("seal")
    assert seal is not None
    assert cost["usd"] == pytest.approx((seconds + seal["seconds"]) / 1000)
    assert cost["usd_per_accepted_row"] == pytest.approx(cost["usd"] / 10)
    assert cost["usd_per_gap_point"] == pytest.approx(cost["usd"] / 75)
    scratch = 6 * 20 * (BODY + HEAD) ** 2
    assert cost["from_scratch"]["student_flops"] == scratch
    assert cost["from_scratch"]["student_ratio"] == pytest.approx((generate + train) / scratch)
    assert json.loads(json.dumps(cost)) == cost
    assert len(cost_lines(cost)) == 3


def test_report_costs_by_the_prices_that_the_recipe_names(ctx: RunContext, tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(priced(cpu_core=3.6).model_dump_json())
    cluster = ctx.config.cluster.model_copy(update={"prices": str(path)})
    config = ctx.config.model_copy(update={"cluster": cluster})
    with RunContext(config, ctx.run_dir, ctx.progress) as priced_by_recipe:
        report = build_costed_report(priced_by_recipe)
    assert report["cost"]["prices"]["cpu_core"]["usd_per_hour"] == 3.6
    assert report["cost"]["usd"] == build_cost(ctx, report, priced(cpu_core=3.6))["usd"]


def test_cost_of_weights_that_are_elsewhere_is_not_guessed(ctx: RunContext, tmp_path: Path) -> None:
    (tmp_path / "teacher" / "model.safetensors").unlink()
    report = build_report(ctx.run_dir, "small") | {"gap_closed": None}
    cost = build_cost(ctx, report, load_prices())
    assert cost["flops"]["generate"] is cost["flops"]["total"] is None
    assert cost["flops"]["train"] is not None
    assert cost["usd_per_gap_point"] is cost["from_scratch"]["student_ratio"] is None
    assert any("teacher.teacher" in each for each in cost["assumptions"])
    assert len(cost_lines(cost)) == 1


def test_gpus_are_counted_by_teacher_and_priced_by_their_type() -> None:
    teacher = {"model": "a/b", "accelerator_type": "H100", "max_replicas": 3, "engine": {"tensor_parallel_size": 2}}
    config = make_config(teacher=teacher, training__num_workers=4)
    record = {"seconds": 100.0, "devices": {"teacher": "gpu"}}
    prices = priced(H100=3.6)
    [use] = find_usage(config, "generate", record, "gpu", prices)
    assert (use.pool, use.device, use.count, use.device_seconds) == ("teacher.teacher", "H100", 6, 600.0)
    assert use.usd == pytest.approx(0.6)
    [use] = find_usage(config, "train", record, "gpu", prices)
    assert (use.pool, use.device, use.count) == ("student", "H100", 4)
    [use] = find_usage(config, "train", record, "cpu", prices)
    assert (use.device, use.count) == ("cpu_core", 4)


def test_student_beside_its_teacher_is_counted_with_its_fewest_workers_until_it_has_the_other_nodes() -> None:
    config = make_config(teacher={"model": "a/b", "accelerator_type": "H100"}, training__num_workers=[2, 8])
    few, most = find_usage(config, "train", {"seconds": 100.0, "grown_s": 30.0}, "gpu", priced(H100=3.6))
    assert (few.count, few.seconds, most.count, most.seconds) == (2, 70.0, 8, 30.0)
    [never] = find_usage(config, "train", {"seconds": 100.0, "grown_s": 0.0}, "gpu", priced(H100=3.6))
    assert (never.count, never.device_seconds) == (2, 200.0)
    [in_turn] = find_usage(config, "train", {"seconds": 100.0}, "gpu", priced(H100=3.6))
    assert (in_turn.count, in_turn.device_seconds) == (8, 800.0)


def test_gpu_of_an_unknown_type_has_no_price() -> None:
    config = make_config(teacher={"model": "a/b"})
    [use] = find_usage(config, "generate", {"seconds": 1.0, "devices": {"teacher": "gpu"}}, "gpu", load_prices())
    assert use.device is use.usd is None


def test_comparison_with_scratch_has_the_control_student() -> None:
    report = {"accuracy": {"student_control": 0.3, "student_after": 0.7}}
    flops = {"total": 600.0, "train_control": 50.0}
    found = compare(report, flops, {"teacher.teacher": Weights(9, 1), "student": Weights(1, 0)})
    assert (found["control_accuracy"], found["control_flops"]) == (0.3, 50.0)
    assert (found["student_ratio"], found["teacher_ratio"]) == (5.0, 0.05)


@pytest.mark.parametrize(
    ("model_type", "arguments"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("qwen3", {"head_dim": 8}),
        ("gpt2", {}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_weights_of_a_checkpoint_are_those_that_training_counts(
    tmp_path: Path, model_type: str, arguments: dict[str, Any]
) -> None:
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64} if model_type == "gpt2" else LLAMA
    config = AutoConfig.for_model(model_type, vocab_size=48, **{**size, **arguments})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    counted = count_flops(model)
    weights = count_weights(str(tmp_path))
    assert weights is not None
    assert (6 * weights.body, 6 * weights.head) == (counted.per_token, counted.per_loss_token)


def test_weights_that_are_packed_are_unpacked_or_not_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    blocks = {"m.experts.up_blocks": torch.zeros(4, 8, dtype=torch.uint8), "m.experts.up_scales": torch.zeros(4, 1)}
    save_torch(blocks, tmp_path / "model.safetensors")
    assert count_weights(str(tmp_path)) == Weights(64, 0)
    save_file({"m.q_proj.qweight": np.zeros((4, 4), np.int32)}, tmp_path / "model.safetensors")
    assert count_weights(str(tmp_path)) is None
    assert count_weights(str(tmp_path / "nowhere")) is None
