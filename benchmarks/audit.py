"""How well the audit of watermarks is calibrated: ``python -m benchmarks audit [--texts N] [--decoys N]``.

Prints quantiles of the p-values of unmarked text, which should be the uniform ones; z of a student by the share of
marked text in what it learnt; and the decoys' distribution, which should be standard normal. A language of random
bigrams and a student of counts stand in for models: the tests assume nothing of either. Returns 1 where a bound of the
tests does not hold: z above 8 with all text marked, above 4 with a tenth, within 4 without and for another key.
"""

import argparse
import statistics
from collections.abc import Sequence

import numpy as np

from benchmarks.marked_text import BigramTeacher, CountingStudent, find_count_differences
from configs.watermark import WatermarkKind, WatermarkScheme
from services.watermark.key import WatermarkKey
from services.watermark.students import Differences, audit_student, z_score
from services.watermark.texts import TextScorer, log10_p_value, nothing_scored

SHARES = (0.0, 0.01, 0.05, 0.10, 0.25, 1.0)
DECOYS_AT = 0.10  # of the shares, where the decoys are tried
QUANTILES = (0.01, 0.05, 0.25, 0.50, 0.75, 0.95)
TEXT_TOKENS = 100
SCHEMES = (
    WatermarkScheme(kind=WatermarkKind.GUMBEL, context_tokens=2),
    WatermarkScheme(kind=WatermarkKind.GUMBEL, context_tokens=4),
    WatermarkScheme(kind=WatermarkKind.GUMBEL, context_tokens=4, channels=8),
    WatermarkScheme(kind=WatermarkKind.GREEN_LIST, context_tokens=2),
    WatermarkScheme(kind=WatermarkKind.GREEN_LIST, context_tokens=4),
)
KEY, OTHER_KEY = (WatermarkKey.of(f"{name} key of the audit's calibration, no secret") for name in ("the", "another"))


def main(arguments: list[str]) -> int:
    """Print the three tables; returns 1 when a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks audit", description=__doc__)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--decoys", type=int, default=100)
    parser.add_argument("--positions", type=int, default=4000)
    options = parser.parse_args(arguments)
    teacher = BigramTeacher()
    clean, other = (teacher.write(options.texts, TEXT_TOKENS, seed) for seed in (1, 2))
    marked = {scheme: teacher.write(options.texts, TEXT_TOKENS, 3, KEY, scheme) for scheme in SCHEMES}

    print(f"p-values of {options.texts} texts of {TEXT_TOKENS} tokens, by quantile; of all texts together at the right")
    print(f"{'':<38}" + "".join(f"{quantile:>9.0%}" for quantile in QUANTILES) + "      all")
    for scheme in SCHEMES:
        print(f"{name_scheme(scheme) + ', unmarked':<38}{quantile_words(clean, scheme)}")
        print(f"{name_scheme(scheme) + ', marked':<38}{quantile_words(marked[scheme], scheme)}", flush=True)

    print("\nz of a student by the share of marked text that it learnt from, and of another key where all was marked")
    print(
        f"{'':<31}" + "".join(f"{share:>7.0%}" for share in SHARES) + f"{'other':>7}   decoys: mean    sd   min   max"
    )
    faults = []
    for scheme in SCHEMES:
        learnt = {share: mix(clean, marked[scheme], share) for share in SHARES}
        found = {share: learn(teacher, other, texts, scheme, options.positions) for share, texts in learnt.items()}
        z = {share: z_score(KEY, scheme, differences) for share, differences in found.items()}
        stray = z_score(OTHER_KEY, scheme, found[1.0])
        decoys = audit_student(KEY, scheme, found[DECOYS_AT], options.decoys).decoys
        print(
            f"{name_scheme(scheme):<31}" + "".join(f"{z[share]:>7.1f}" for share in SHARES) + f"{stray:>7.1f}"
            f"        {statistics.fmean(decoys):>7.2f}{statistics.stdev(decoys):>6.2f}{min(decoys):>6.2f}"
            f"{max(decoys):>6.2f}",
            flush=True,
        )
        faults += find_faults(scheme, z, stray)
    for fault in faults:
        print(f"fault: {fault}")
    return int(bool(faults))


def quantile_words(texts: Sequence[Sequence[int]], scheme: WatermarkScheme) -> str:
    """Quantiles of the texts' p-values and the p-value of all, as powers of ten where they are small."""
    scorer = TextScorer(KEY, scheme)
    evidences = [scorer.score(text) for text in texts]
    found = np.quantile([log10_p_value(each.alone, scheme) for each in evidences], QUANTILES)
    together = log10_p_value(sum((each.added for each in evidences), nothing_scored(scheme)), scheme)
    return "".join(f"{_probability(each):>9}" for each in (*found, together))


def learn(
    teacher: BigramTeacher,
    other: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    scheme: WatermarkScheme,
    positions: int,
) -> Differences:
    """What a student of ``texts`` predicts, less a base that learnt from other, unmarked text."""
    vocabulary, width = len(teacher.logits_VV), scheme.context_tokens
    student, base = (CountingStudent(read, width, vocabulary) for read in (texts, other))
    return find_count_differences(student, base, texts, scheme, positions)


def mix(clean: Sequence[Sequence[int]], marked: Sequence[Sequence[int]], share: float) -> list[Sequence[int]]:
    """As many texts, of which a share is marked, evenly among the others."""
    steps = (np.arange(len(clean) + 1) * share).astype(int)
    return [marked[i] if steps[i + 1] > steps[i] else clean[i] for i in range(len(clean))]


def find_faults(scheme: WatermarkScheme, z: dict[float, float], stray: float) -> list[str]:
    """Sentences about bounds that do not hold."""
    checks = (
        (z[1.0] > 8, f"z is {z[1.0]:.1f} with all text marked, and should be above 8"),
        (scheme.channels > 1 or z[0.10] > 4, f"z is {z[0.10]:.1f} with a tenth marked, and should be above 4"),
        (abs(z[0.0]) < 4, f"z is {z[0.0]:.1f} without marked text, and should be within 4"),
        (abs(stray) < 4, f"z is {stray:.1f} with another key, and should be within 4"),
    )
    return [f"{name_scheme(scheme)}: {sentence}" for holds, sentence in checks if not holds]


def name_scheme(scheme: WatermarkScheme) -> str:
    """Such as ``gumbel, 4 tokens, 8 channels``."""
    channels = f", {scheme.channels} channels" if scheme.channels > 1 else ""
    return f"{scheme.kind.value}, {scheme.context_tokens} tokens{channels}"


def _probability(log10_p: float) -> str:
    return f"{10**log10_p:.3f}" if log10_p > -3 else f"1e{log10_p:.0f}"
