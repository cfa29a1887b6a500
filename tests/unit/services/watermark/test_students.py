"""The audit of students, on students of counts: found where they learnt from marked text, and not elsewhere."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from benchmarks.audit import mix
from benchmarks.marked_text import CountingStudent, find_count_differences
from configs.watermark import WatermarkScheme
from services.watermark.students import Differences, FreshContexts, audit_student, z_score
from tests.unit.services.watermark.marking import (
    EIGHT_CHANNELS,
    GREEN_LIST,
    GUMBEL,
    KEY,
    OTHER_KEY,
    marked_texts,
    unmarked_texts,
)

pytestmark = pytest.mark.unit

VOCABULARY, POSITIONS, DECOYS = 128, 3000, 30
SCHEMES = pytest.mark.parametrize("scheme", [GUMBEL, GREEN_LIST], ids=["gumbel", "green"])


@cache
def differences(scheme: WatermarkScheme, share: float) -> Differences:
    """Of a student whose texts are marked to that share, and a base that learnt from other texts without a mark."""
    learnt = mix(unmarked_texts(), marked_texts(scheme), share)
    base = CountingStudent(unmarked_texts(seed=9), scheme.context_tokens, VOCABULARY)
    student = CountingStudent(learnt, scheme.context_tokens, VOCABULARY)
    return find_count_differences(student, base, learnt, scheme, POSITIONS)


@SCHEMES
def test_student_of_marked_text_is_found_beyond_all_decoys(scheme: WatermarkScheme) -> None:
    finding = audit_student(KEY, scheme, differences(scheme, 1.0), DECOYS)
    assert finding.z > 8
    assert finding.z_by_decoys > 8
    assert finding.p < 1e-12
    assert finding.rank_p == pytest.approx(1 / (DECOYS + 1))


@SCHEMES
def test_student_of_a_tenth_of_marked_text_is_found(scheme: WatermarkScheme) -> None:
    assert z_score(KEY, scheme, differences(scheme, 0.1)) > 4


@SCHEMES
def test_clean_student_is_not_found(scheme: WatermarkScheme) -> None:
    finding = audit_student(KEY, scheme, differences(scheme, 0.0), DECOYS)
    assert abs(finding.z) < 4
    assert abs(finding.z_by_decoys) < 4
    assert finding.rank_p > 1 / (DECOYS + 1)


@SCHEMES
def test_wrong_keys_find_nothing_in_a_student_of_marked_text(scheme: WatermarkScheme) -> None:
    found = [z_score(OTHER_KEY.decoy(number), scheme, differences(scheme, 1.0)) for number in range(20)]
    assert max(map(abs, found)) < 4


@SCHEMES
def test_decoys_are_standard_normal(scheme: WatermarkScheme) -> None:
    finding = audit_student(KEY, scheme, differences(scheme, 0.1), 100)
    assert abs(finding.decoy_mean) < 4 / math.sqrt(100)
    assert 0.75 < finding.decoy_sd < 1.25


def test_all_channels_of_a_key_count() -> None:
    assert z_score(KEY, EIGHT_CHANNELS, differences(EIGHT_CHANNELS, 1.0)) > 8
    assert abs(z_score(OTHER_KEY, EIGHT_CHANNELS, differences(EIGHT_CHANNELS, 1.0))) < 4


def test_z_is_the_sum_over_its_exact_spread() -> None:
    """Over many keys z has mean 0 and variance 1, whatever the differences are."""
    values = torch.tensor([[3.0, -1.0], [0.5, 0.0]])
    made = Differences(np.array([[1, 2, 3], [4, 5, 6]]), np.array([[1, 2], [1, 3]]), values)
    found = [z_score(KEY.decoy(number), GUMBEL, made) for number in range(4000)]
    assert np.mean(found) == pytest.approx(0.0, abs=0.06)
    assert np.var(found) == pytest.approx(1.0, abs=0.15)


def test_contexts_are_taken_once_and_only_where_the_prefix_has_not_shown_them() -> None:
    fresh = FreshContexts(GUMBEL)
    prompt, completion = [1, 2, 3, 9], [5, 6, 7, 8, 5, 6, 7, 9, 1, 2, 3, 4]
    # Place 3 follows 5 6 7, place 4 6 7 8, and so on; 5 6 7 comes again at 7, and 1 2 3 is in the prompt.
    assert fresh.take(prompt, completion, 100) == [3, 4, 5, 6, 8, 9, 10]
    assert fresh.take((), completion, 100) == [11]  # the one that the prompt had stood in the way of
    assert FreshContexts(GUMBEL).take((), completion, 2) == [3, 4]
