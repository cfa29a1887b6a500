"""``stillhouse audit``: looks for a watermark in texts and in students, and says what that does and does not mean."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.audit_texts import TokenRow
from configs.errors import UserError
from configs.watermark import WatermarkKind, WatermarkScheme
from services.watermark.key import WatermarkKey
from services.watermark.students import Differences, FreshContexts, StudentFinding, audit_student
from services.watermark.texts import TextScorer, log10_p_value, nothing_scored
from training.job import JobDevice
from training.predictions import Place, load_predictor, predict_differences

MIN_SCORED = 20  # tokens; fewer cannot reach a p-value that anybody should act on
MIN_POSITIONS = 100  # below it a sum of a few large differences is far from normal
MAX_PLACES_OF_A_ROW = 256  # so that the logits of one row stay small
MAX_ROW_TOKENS = 2048  # a model's own limit may be lower
FOUND_Z, CLOSER_LOOK_Z = 4.0, 2.5
FOUND_LOG10_P, CLOSER_LOOK_LOG10_P = -6.0, -3.0
ALIKE = 1e-6  # root mean square of differences that come of rounding alone

TEXT_LIMITS = (
    "The p-value is the chance that text which knows nothing of this key scores as high. It says nothing of who wrote "
    "the text, and is for one look: of a thousand texts one is below 0.001.",
    "A mark that is not found proves nothing: edited, translated or short text loses it, and so does text of "
    "near-certain tokens.",
    "Text has to be turned into tokens again where token ids are not at hand, which can differ from what was written "
    "and weakens the mark.",
)
STUDENT_LIMITS = (
    "It shows that the student's predictions depend on this key beyond those of its base, which learning from text "
    "with this mark explains. It does not show who trained it, or that a contract or law was broken.",
    "A student that learnt from third parties' copies of such text looks the same.",
    "A mark that is not found proves nothing: paraphrased or filtered text, little of it, a long context or a student "
    "that was trained further lose it.",
    "Whoever knows the key can make any text or student carry the mark: keep it, and its id with a date, with somebody "
    "who has no interest in the case.",
    "The base has to be the very model that the student was made from; another one adds differences that are not the "
    "student's learning. They weaken the test and do not bias it.",
)


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The figures as JSON, and the same in words."""

    figures: dict[str, Any]
    lines: list[str]

    def write(self, path: Path) -> None:
        """Write the figures; UserError where that cannot be."""
        try:
            path.write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--report: {path} cannot be written ({error.strerror}); choose another file") from None


def audit_texts(rows: Sequence[TokenRow], key: WatermarkKey, scheme: WatermarkScheme) -> AuditReport:
    """How likely text without the mark is to score as high; all rows together, and each by itself.

    Raises:
        UserError: there are too few tokens to say anything.
    """
    scorer = TextScorer(key, scheme)
    evidences = [scorer.score(row.token_ids) for row in rows]
    together = sum((each.added for each in evidences), nothing_scored(scheme))
    _require_tokens(together.num_scored, sum(len(row.token_ids) for row in rows), scheme)
    log10_p = log10_p_value(together, scheme)
    scored = [each.alone for each in evidences if each.alone.num_scored >= MIN_SCORED]
    low = sum(log10_p_value(each, scheme) <= -2 for each in scored)
    figures = {
        "audit": "text",
        **_describe(key, scheme),
        "texts": len(rows),
        "scored_tokens": together.num_scored,
        "mean_score": float(together.sums.max()) / together.num_scored,
        "log10_p": log10_p,
        "p": 10.0**log10_p,
        "texts_scored_alone": len(scored),
        "texts_below_1_percent": low,
        "verdict": _text_verdict(log10_p),
        "limits": TEXT_LIMITS,
    }
    lines = [
        f"key        {key.key_id}, {_scheme_words(scheme)}",
        f"texts      {len(rows):,}, with {together.num_scored:,} tokens after contexts that are new",
        f"p-value    {_power(log10_p)} that text without this mark scores as high",
    ]
    if len(rows) > 1:
        lines.append(
            f"alone      {low:,} of {len(scored):,} texts of {MIN_SCORED} tokens and more have a p-value of 1 % or "
            f"less; without a mark {0.01 * len(scored):,.1f} would"
        )
    return AuditReport(figures, [*lines, f"verdict    {figures['verdict']}", *_limit_lines(TEXT_LIMITS)])


def audit_model(
    student: str,
    base: str | None,
    rows: Sequence[TokenRow],
    key: WatermarkKey,
    scheme: WatermarkScheme,
    *,
    num_positions: int,
    num_decoys: int,
    device: JobDevice,
) -> AuditReport:
    """Whether a student's predictions over ``rows`` depend on the key more than its base's do.

    Raises:
        UserError: a model cannot be loaded, there are too few tokens, or both models predict the same.
    """
    differences = find_differences(student, base, rows, scheme, num_positions, device)
    finding = audit_student(key, scheme, differences, num_decoys)
    verdict = _student_verdict(finding)
    figures = {
        "audit": "student",
        **_describe(key, scheme),
        "student": student,
        "base": base,
        "positions": finding.num_positions,
        "z": finding.z,
        "p": finding.p,
        "z_by_decoys": finding.z_by_decoys,
        "rank_p": finding.rank_p,
        "decoys": {
            "number": num_decoys,
            "mean": finding.decoy_mean,
            "sd": finding.decoy_sd,
            "min": min(finding.decoys),
            "max": max(finding.decoys),
        },
        "verdict": verdict,
        "limits": STUDENT_LIMITS,
    }
    against = f"less {base}" if base else "with no base to compare with, which tells less"
    lines = [
        f"key        {key.key_id}, {_scheme_words(scheme)}",
        f"student    {student}, {against}",
        f"positions  {finding.num_positions:,} with different contexts",
        f"z          {finding.z:+.2f} (p {_power(math.log10(finding.p)) if finding.p > 0 else '< 1e-300'}); by the "
        f"decoys' mean and spread {finding.z_by_decoys:+.2f}",
        f"decoys     {num_decoys} keys that marked nothing: mean {finding.decoy_mean:+.2f}, sd {finding.decoy_sd:.2f}, "
        f"from {min(finding.decoys):+.2f} to {max(finding.decoys):+.2f}; rank p {finding.rank_p:.3f}",
        f"verdict    {verdict}",
    ]
    return AuditReport(figures, [*lines, *_limit_lines(STUDENT_LIMITS)])


def find_differences(
    student: str,
    base: str | None,
    rows: Sequence[TokenRow],
    scheme: WatermarkScheme,
    num_positions: int,
    device: JobDevice,
) -> Differences:
    """What the student has learnt, at the first ``num_positions`` places of the rows whose context is new."""
    models = load_predictor(student, "student", device), load_predictor(base, "base", device) if base else None
    longest = min(MAX_ROW_TOKENS, *(_context_of(model) for model in models if model is not None))
    vocabulary = models[0].get_input_embeddings().num_embeddings
    fresh, left = FreshContexts(scheme), num_positions
    places, contexts = list[Place](), list[list[int]]()
    for row in rows:
        token_ids = [*row.prompt_ids, *row.token_ids][:longest]
        if max(token_ids, default=0) >= vocabulary:
            raise UserError(
                f"the texts have the token {max(token_ids)} and {student} knows {vocabulary} tokens; they must be of "
                "the student's own tokenizer, which is the teacher's"
            )
        num_prompt = len(row.prompt_ids)
        taken = fresh.take(row.prompt_ids, token_ids[num_prompt:], min(left, MAX_PLACES_OF_A_ROW))
        if taken:
            left -= len(taken)
            places.append(Place(token_ids, [num_prompt + each for each in taken]))
            contexts += [token_ids[at - scheme.context_tokens : at] for at in places[-1].places]
        if not left:
            break
    if len(contexts) < MIN_POSITIONS:
        raise UserError(
            f"the texts have {len(contexts)} tokens after contexts of {scheme.context_tokens} that are new, and at "
            f"least {MIN_POSITIONS} are needed; give more texts"
        )
    kept = list(predict_differences(*models, places))
    differences = Differences(
        np.asarray(contexts, dtype=np.int64),
        torch.cat([tokens for tokens, _ in kept]).numpy(),
        torch.cat([values for _, values in kept]),
    )
    if float(differences.values_NM.square().mean().sqrt()) < ALIKE:
        raise UserError(
            f"{student} and {base} predict the same, so there is nothing that was learnt; --base is the model that the "
            "student was made from, before it was trained"
        )
    return differences


def _context_of(model: Any) -> int:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or MAX_ROW_TOKENS


def _require_tokens(num_scored: int, num_tokens: int, scheme: WatermarkScheme) -> None:
    if num_scored < MIN_SCORED:
        raise UserError(
            f"of {num_tokens} tokens {num_scored} can be scored, the ones after {scheme.context_tokens} others that do "
            f"not repeat, and at least {MIN_SCORED} are needed; give more text"
        )


def _describe(key: WatermarkKey, scheme: WatermarkScheme) -> dict[str, Any]:
    return {"key_id": key.key_id, "scheme": scheme.parameters}


def _scheme_words(scheme: WatermarkScheme) -> str:
    words = f"{scheme.kind.value.replace('_', ' ')}, contexts of {scheme.context_tokens} tokens"
    if scheme.kind is WatermarkKind.GREEN_LIST:
        words += f", {scheme.green_share:.0%} green"
    return words + (f", {scheme.channels} channels" if scheme.channels > 1 else "")


def _text_verdict(log10_p: float) -> str:
    if log10_p <= FOUND_LOG10_P:
        return "the mark of this key is in the text"
    if log10_p <= CLOSER_LOOK_LOG10_P:
        return "perhaps; more text would tell"
    return "no mark of this key is found"


def _student_verdict(finding: StudentFinding) -> str:
    z = min(finding.z, finding.z_by_decoys)
    if z >= FOUND_Z and finding.z > max(finding.decoys):
        return "the student has learnt from text with the mark of this key"
    if z >= CLOSER_LOOK_Z:
        return "perhaps; more positions would tell"
    return "no trace of this key is found in the student"


def _power(log10_p: float) -> str:
    return f"{10.0**log10_p:.3f}" if log10_p > -3 else f"1e{math.floor(log10_p)}"


def _limit_lines(limits: Sequence[str]) -> list[str]:
    return ["", "What this does not say", *(f"  - {each}" for each in limits)]
