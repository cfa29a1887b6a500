"""How a completion is judged: pure functions of text, used for acceptance and for evaluation.

To add one, name it in `configs.schema.VerifierName`, write its function here, and give it a line in `final_answer`.
"""

import re
from decimal import Decimal, InvalidOperation

from configs.schema import VerifierName

# An answer is the last boxed expression (MATH), or what follows the last "####" (GSM8K), or else the last number.
_BOXED = "\\boxed{"
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")


def final_answer(verifier: VerifierName, completion: str) -> str | None:
    """The part of a completion that states its answer, or None when it states none."""
    match verifier:
        case VerifierName.EXACT_ANSWER:
            return _exact_answer(completion)
        case VerifierName.NONE:
            return completion
    raise AssertionError(verifier)


def is_correct(verifier: VerifierName, completion: str, answer: str | None) -> bool:
    """Whether the completion's final answer is the reference; without a verifier everything is."""
    if verifier is VerifierName.NONE:
        return True
    found = final_answer(verifier, completion)
    return found is not None and answer is not None and _normalise(found) == _normalise(answer)


def _exact_answer(completion: str) -> str | None:
    if _BOXED in completion:
        return _up_to_closing_brace(completion.rsplit(_BOXED, 1)[1])
    if "####" in completion:
        return completion.rsplit("####", 1)[1].strip().split("\n", 1)[0].strip() or None
    numbers = _NUMBER.findall(completion.replace(",", ""))
    return numbers[-1] if numbers else None


def _up_to_closing_brace(text: str) -> str | None:
    """What a brace that was opened just before ``text`` encloses; None when it is never closed."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:place]
    return None


def _normalise(answer: str) -> str | Decimal:
    """Numbers by value, so that 1.50 is 1.5; anything else by its letters, without spaces and thousands commas."""
    text = answer.strip().rstrip(".").replace(",", "").replace(" ", "").removeprefix("$")
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    return text if number.is_nan() else number  # a NaN is equal to nothing, itself included
