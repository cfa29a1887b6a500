"""Answers of a student to held-out prompts, before or after training; how they are judged is not decided here."""

import tempfile

from training.generate import complete_greedy
from training.job import JobDevice, TrainJob
from training.model import build_model, load_tokenizer
from training.tokenise import encode_prompt


def answer_prompts(
    job: TrainJob, hf_dir: str | None, prompts: list[str], *, max_tokens: int, batch_size: int, device: JobDevice
) -> list[str]:
    """Return the greedy answer to each prompt (JSON of a string or of messages) as text.

    ``hf_dir`` is the trained student, or None for the student that the job starts from.
    """
    tokenizer = load_tokenizer(job.tokenizer, job.tokenizer_revision, job.trust_remote_code)
    token_ids = [encode_prompt(prompt, tokenizer, job.template_kwargs) for prompt in prompts]
    with tempfile.TemporaryDirectory(prefix="stillhouse-student-") as scratch:
        if hf_dir is None:
            build_model(job, tokenizer).save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        completions = complete_greedy(
            hf_dir or scratch, token_ids, max_tokens=max_tokens, batch_size=batch_size, device=device
        )
    return [str(tokenizer.decode(completion, skip_special_tokens=True)) for completion in completions]
