"""What of which architecture is cut between the ranks of a group, over which ranks the rest is spread, and refusals."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ray.train import ScalingConfig
from torch.testing._internal.distributed.fake_pg import FakeStore

from configs.errors import UserError
from tests.unit.training.tiny import LLAMA, make_job
from training.lora import add_adapters
from training.loss import StudentWithLoss
from training.model import build_model, find_decoder_layers, load_tokenizer
from training.parallel import World, build_meshes, clip_gradients, shard_model
from training.tensor_parallel import LayerPlan, plan_layers
from training.trainer import WholeGroups
from training.weights import without_weights

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
MLP = {"mlp.gate_proj": "colwise", "mlp.up_proj": "colwise", "mlp.down_proj": "rowwise"}
ATTENTION = {f"self_attn.{name}_proj": "colwise" for name in "qkv"} | {"self_attn.o_proj": "rowwise"}
HEAD_NORMS = {f"self_attn.{name}_norm": "replicated_with_grad_allreduce" for name in "qk"}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 1}


@pytest.fixture
def eight_ranks() -> Iterator[World]:
    """The place of rank 5 among eight, whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=8)
    yield World(5, 8, CPU)
    dist.destroy_process_group()


def build(root: Path, model_type: str, **arguments: Any) -> Any:
    job = make_job(root, num_rows=2, init={"model_type": model_type, "arguments": arguments})
    return build_model(job, load_tokenizer(job.tokenizer))


def plan(model: Any, size: int) -> list[LayerPlan]:
    return plan_layers(model, find_decoder_layers(model), size)


@pytest.mark.parametrize(
    ("model_type", "changed", "of_layer"),
    [
        ("llama", {}, ATTENTION | MLP),
        ("llama", {"tie_word_embeddings": True}, ATTENTION | MLP),
        ("qwen3", {"head_dim": 8}, ATTENTION | HEAD_NORMS | MLP),
        ("gemma3_text", {"head_dim": 8}, ATTENTION | HEAD_NORMS | MLP),
    ],
)
def test_plan_layers_is_that_of_transformers_within_layers(
    tmp_path: Path, model_type: str, changed: dict[str, Any], of_layer: LayerPlan
) -> None:
    model = build(tmp_path, model_type, **LLAMA | changed)
    assert plan(model, 2) == [of_layer, of_layer]
    assert plan(model, 1) == [{}, {}]


@pytest.mark.parametrize(
    ("model_type", "arguments", "size", "sentence"),
    [
        ("gpt2", GPT2, 2, "=2 cannot be had for a student of type gpt2, for which transformers has no plan"),
        ("qwen3_moe", LLAMA | MIXTURE, 2, "of type qwen3_moe: .* cuts more than plain matrices"),
        ("qwen2_moe", LLAMA | MIXTURE, 2, r"of type qwen2_moe: .* leaves out mlp\.gate\.weight"),
        ("cohere", LLAMA | {"use_qk_norm": True}, 2, r"of type cohere: .* leaves out self_attn\.q_norm\.weight"),
        ("llama", LLAMA, 4, r"tensor_parallel_size \(4\) must divide the student's 2 attention heads"),
        ("llama", LLAMA | {"num_attention_heads": 4}, 4, "must divide the student's 2 key and value heads"),
        ("llama", LLAMA | {"intermediate_size": 33}, 2, "must divide the 33 outputs of the student's mlp.gate_proj"),
    ],
)
def test_plan_layers_what_cannot_be_cut_is_refused(
    tmp_path: Path, model_type: str, arguments: dict[str, Any], size: int, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        plan(build(tmp_path, model_type, **arguments), size)


def test_add_adapters_with_a_group_is_refused(tmp_path: Path) -> None:
    model = build(tmp_path, "llama", **LLAMA)
    lora = {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": [], "quantization": None}
    with pytest.raises(UserError, match=r"training.tensor_parallel_size \(2\) must be 1 with student.lora"):
        add_adapters(model, make_job(tmp_path, lora=lora, tensor_parallel_size=2))


def test_world_grouped_neighbours_share_their_data() -> None:
    world = World(5, 8, CPU)
    assert (world.data_rank, world.data_size) == (5, 8)
    assert (world.grouped(2).data_rank, world.grouped(2).data_size) == (2, 4)
    with pytest.raises(UserError, match=r"training.tensor_parallel_size \(3\) must divide the number of workers, 8"):
        world.grouped(3)


@pytest.mark.parametrize(
    ("shard_size", "layers", "rest"),
    [(8, [1, 3, 5, 7], [0, 1, 2, 3, 4, 5, 6, 7]), (4, [[1, 3], [5, 7]], [[0, 1, 2, 3], [4, 5, 6, 7]])],
)
def test_build_meshes_a_part_of_a_layer_has_its_peers_in_the_other_groups(
    eight_ranks: World, shard_size: int, layers: list[Any], rest: list[Any]
) -> None:
    meshes = build_meshes(shard_size, eight_ranks.grouped(2))
    assert meshes.tensor is not None
    assert meshes.tensor.mesh.tolist() == [4, 5]
    assert meshes.layers.mesh.tolist() == layers
    assert meshes.rest.mesh.tolist() == rest


def test_build_meshes_without_groups_spreads_all_alike(eight_ranks: World) -> None:
    meshes = build_meshes(4, eight_ranks)
    assert (meshes.layers, meshes.tensor) == (meshes.rest, None)
    assert meshes.rest.mesh.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_shard_model_a_rank_has_an_eighth_of_every_matrix(tmp_path: Path, eight_ranks: World) -> None:
    model = build(tmp_path, "qwen3", **LLAMA | {"head_dim": 8})
    student = without_weights(StudentWithLoss(model))
    layers = find_decoder_layers(student.model)
    config = make_job(tmp_path, tensor_parallel_size=2).training
    shard_model(student, layers, config, eight_ranks.grouped(2), plan(student.model, 2))
    for name, parameter in student.named_parameters():
        parts = 8 if parameter.ndim == 2 or ".layers." not in name else 4  # norms of a layer are whole in a group
        assert parameter.to_local().numel() == parameter.numel() // parts, name


def test_clip_gradients_scales_to_the_norm_and_returns_what_it_was() -> None:
    model = torch.nn.Linear(2, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    assert clip_gradients(model, 10.0) == 5.0
    assert model.bias.grad.item() == 4.0
    assert clip_gradients(model, 1.0) == 5.0
    assert model.weight.grad[0, 0].item() == pytest.approx(0.6)


@pytest.mark.parametrize(("size", "workers"), [(1, 5), (2, 4), (3, 3)])
def test_elastic_group_has_as_many_workers_as_fill_groups(size: int, workers: int) -> None:
    policy = WholeGroups(ScalingConfig(num_workers=(size, 6), resources_per_worker={"CPU": 1}), size)
    assert policy._count_possible_workers({"a": {"CPU": 3.0}, "b": {"CPU": 2.0}}) == workers
