"""How a student's next-token probabilities differ from those of the model it was made from, over rows of tokens.

Called by the audit; it knows nothing of watermarks, so what it keeps cannot depend on a key.
Shapes: T tokens of a row, N places of it, V vocabulary, M tokens that are kept of each place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from configs.errors import UserError
from training.job import JobDevice
from training.model import check_directory

KEPT_TOKENS = 128  # of each place, those with the largest differences; they hold nearly all of the squares


@dataclass(frozen=True, slots=True)
class Place:
    """Tokens and the places among them, all above 0, whose token is predicted from those before it."""

    token_ids: list[int]
    places: list[int]


def load_predictor(path: str, what: str, device: JobDevice) -> PreTrainedModel:
    """Return a model that only predicts; UserError names ``what`` when there is none at ``path``."""
    check_directory(path, what)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the {what} {path!r}: {str(error).strip().splitlines()[0]}") from error
    assert isinstance(model, PreTrainedModel)
    return model.eval().to("cuda" if device is JobDevice.GPU else "cpu")


def predict_differences(
    student: PreTrainedModel, base: PreTrainedModel | None, rows: Sequence[Place]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield of each row the kept tokens (N, M), int64, and their differences of probability (N, M), float32.

    Without a base the student's own probabilities. Vocabularies that were padded to different sizes are cut to the
    smaller one.
    """
    for row in rows:
        differences_NV = _predict(student, row)
        if base is not None:
            base_NV = _predict(base, row)
            size = min(differences_NV.shape[1], base_NV.shape[1])
            differences_NV = differences_NV[:, :size] - base_NV[:, :size]
        kept_NM = differences_NV.abs().topk(min(KEPT_TOKENS, differences_NV.shape[1])).indices
        yield kept_NM.cpu(), differences_NV.gather(1, kept_NM).cpu()


@torch.no_grad()
def _predict(model: PreTrainedModel, row: Place) -> torch.Tensor:
    """Probabilities (N, V) of the tokens at a row's places."""
    end = max(row.places)
    tokens_1T = torch.tensor([row.token_ids[:end]], device=model.device)
    before_N = torch.tensor(row.places, device=model.device) - 1
    # Logits of a whole row, times a large vocabulary, would be gigabytes.
    logits_1NV = model(input_ids=tokens_1T, use_cache=False, logits_to_keep=before_N).logits
    return logits_1NV[0].float().softmax(dim=-1)
