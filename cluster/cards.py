"""The words of a release: Hugging Face cards of student and data set, and the EU summary's section on distillation.

Filled from what the run recorded. The front matter is what the Hub and `datasets` read; the templates lie beside this
module.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from jinja2 import Template

from cluster.claims import claim_words
from cluster.cost_words import cost_lines
from cluster.release import asked_duties, shown_texts
from cluster.release_facts import NOT_CHOSEN, HubLicense, ReleaseFacts, known_entries, public_name
from cluster.terms_sources import DATA_PREFIX, HOME_MADE
from configs.repository import is_repository
from configs.schema import IdentityPolicy, RunConfig
from configs.terms.policy import load_policy
from configs.terms.records import Role, Source

HERE = Path(__file__).parent
WHO = {
    "teacher": "teacher",
    "student_before": "student before",
    "student_after": "student after",
    "student_control": "control student, as many steps on final answers alone",
}
# What the Hub counts a data set's size in.
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def model_card(facts: ReleaseFacts) -> str:
    """The student's README.md."""
    config = facts.config
    bases = [each.name for each in _sources(facts, Role.STUDENT) if each.via is None and is_repository(each.name)]
    relation: dict[str, Any] = {"base_model_relation": "finetune"} if bases else {}
    card_data = ModelCardData(
        base_model=bases or None,
        datasets=_hub_datasets(facts) or None,
        eval_results=_eval_results(facts) or None,
        library_name="transformers",
        license=facts.student_license.license,
        license_name=facts.student_license.license_name,
        license_link=facts.student_license.license_link,
        model_name=facts.name,
        pipeline_tag="text-generation",
        tags=["distillation", "stillhouse"],
        **relation,
    )
    accuracy = facts.report["accuracy"] or {}
    card = ModelCard.from_template(
        card_data,
        template_path=str(HERE / "model_card.md.jinja"),
        **_words(facts),
        introduction=_introduction(facts),
        training=_training(facts),
        accuracy=[(who, f"{accuracy[key]:.1%}") for key, who in WHO.items() if accuracy.get(key) is not None],
        gap="no gap to close" if facts.report["gap_closed"] is None else f"{facts.report['gap_closed']:.1%}",
        verifier=config.evaluation.verifier.value if config.evaluation else "",
        report=facts.report,
        cost=cost_lines(facts.report["cost"]),
        assumptions=facts.report["cost"]["assumptions"],
        license=_license(facts.student_license, "student"),
        shown=shown_texts(facts.decision),
    )
    return f"{card}\n"


def dataset_card(facts: ReleaseFacts) -> str:
    """The data set's README.md, at the root of the run directory: it names the sealed files and no others."""
    rows = facts.manifest["ledger"]["planned"]
    files = [f"completions/{each['path']}" for each in facts.manifest["files"]]
    card_data = DatasetCardData(
        license=facts.data_license.license,
        license_name=facts.data_license.license_name,
        license_link=facts.data_license.license_link,
        task_categories=["text-generation"],
        source_datasets=_hub_datasets(facts) or None,
        size_categories=next((size for limit, size in SIZES if rows < limit), "n>10M"),
        pretty_name=f"{facts.name}: prompts and completions",
        tags=["distillation", "synthetic", "stillhouse"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": files}]}],
    )
    for key in ("license_name", "license_link"):  # the library writes empty ones of data sets out
        if card_data[key] is None:
            card_data.pop(key)
    card = DatasetCard.from_template(
        card_data,
        template_path=str(HERE / "dataset_card.md.jinja"),
        **_words(facts),
        introduction=f"What {_names(_sources(facts, Role.TEACHER))} wrote to teach the student {facts.name}, made by "
        f"{facts.program}.",
        license=_license(facts.data_license, "data"),
    )
    return f"{card}\n"


def eu_training_content(facts: ReleaseFacts) -> str:
    """Section 2.5 of the EU's template for the summary of training content, as Markdown."""
    services = _sources(facts, Role.SERVICE)
    asked = f"asked through {_names(services)}" if services else "run by ourselves, no service was asked"
    total = facts.report["cost"]["flops"]["total"]
    template = Template((HERE / "eu_training_content.md.jinja").read_text(encoding="utf-8"), keep_trailing_newline=True)
    return template.render(
        **_words(facts),
        rows=_counts(facts),
        teachers=_names(_sources(facts, Role.TEACHER)),
        providers=f"{_providers(facts)}; {asked}",
        prompts=_names(_sources(facts, Role.PROMPTS)),
        operations=None if total is None else f"{total:.3g}",
    )


def sampling_words(config: RunConfig) -> str:
    """How the teacher wrote, in one line."""
    sampling = config.sampling
    drawn = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
    marks = {each.key_id: each.kind for each in config.watermarks.values()}
    marked = "".join(f"; with the {kind.value} watermark of the key {key_id}" for key_id, kind in marks.items())
    return f"{sampling.n} a prompt, {drawn}, at most {sampling.max_tokens:,} tokens, seed {sampling.seed}{marked}"


def source_words(source: Source) -> str:
    """A source with its role, revision and licences, in one line."""
    entries = known_entries(source, load_policy())
    licenses = ", ".join(entry.name if entry else "licence not known, waived" for entry in entries)
    at = f" at revision `{source.revision}`" if source.revision else ""
    base = f", base of {source.via}" if source.via else ""
    return f"{source.role.value} {public_name(source)}{at}{base}: {licenses}"


def _words(facts: ReleaseFacts) -> dict[str, Any]:
    """What more than one of the texts says."""
    acceptance = facts.config.acceptance
    kept = {"none": "every completion", "exact_answer": "completions whose final answer equals the reference"}
    least, decision = acceptance.min_completion_tokens, facts.decision
    judged = kept[acceptance.verifier.value] + (f" of {least:,} tokens or more" if least > 1 else "")
    if acceptance.identity is IdentityPolicy.REJECT:
        judged += ", none that says it is another maker's model"
    return {
        "name": facts.name,
        "sources": [source_words(each) for each in decision.sources],
        "data": _counts(facts),
        "manifest": facts.manifest,
        "sampling": sampling_words(facts.config),
        "acceptance": judged,
        "claims": claim_words(facts.manifest.get("claims")),
        "duties": asked_duties(decision),
        "policy_version": decision.policy_version,
        "policy_digest": decision.policy_digest,
        "decided_on": decision.decided_on,
    }


def _introduction(facts: ReleaseFacts) -> str:
    student = facts.config.student
    teachers = _names(_sources(facts, Role.TEACHER))
    if student.model is not None:
        start = f"fine-tuned from {_names([each for each in _sources(facts, Role.STUDENT) if each.via is None])}"
    else:
        start = f"trained from random weights ({student.init.model_type if student.init else 'unknown'})"
    return (
        f"A language model {start} on answers of {teachers}: sequence-level distillation (Kim & Rush 2016, "
        f"arXiv:1606.07947), made by {facts.program} on {facts.created:%Y-%m-%d}."
    )


def _training(facts: ReleaseFacts) -> str:
    training, report = facts.config.training, facts.report["training"]
    adapters = ", low-rank adapters merged" if facts.config.student.lora else ""
    loss = report["evaluation_loss"]
    held_back = f"{loss:.4f} on rows held back" if loss is not None else "no rows were held back"
    return (
        f"{report['num_steps']:,} steps of AdamW, peak learning rate {training.optimizer.learning_rate:g}, "
        f"{training.dtype.value}{adapters}; {report['rows']:,} rows an epoch, "
        f"{facts.report['tokens']['student_loss']:,} loss tokens. Loss at the end {report['final_loss']:.4f} nats a "
        f"token, {held_back}."
    )


def _counts(facts: ReleaseFacts) -> str:
    ledger = facts.manifest["ledger"]
    parts = ", ".join(f"{ledger[key]:,} {key}" for key in ("accepted", "rejected", "failed"))
    return (
        f"{ledger['planned']:,} rows planned: {parts}; {facts.report['tokens']['teacher_output']:,} completion tokens"
    )


def _license(license_: HubLicense, what: str) -> str:
    if license_.license_name == NOT_CHOSEN:
        how = " (`terms.student_license` of the recipe)" if what == "student" else ""
        return (
            f"No licence of a source binds the {what}, and its maker has chosen none yet{how}: all rights are theirs."
        )
    name = license_.license_name or license_.license
    link = f" ({license_.license_link})" if license_.license_link else ""
    return f"The {what} is under {name}{link}, which follows from the sources above and from what its maker chose."


def _eval_results(facts: ReleaseFacts) -> list[EvalResult]:
    after = (facts.report["accuracy"] or {}).get("student_after")
    if after is None or facts.config.evaluation is None:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"{facts.report['evaluation_problems']} held-out problems",
            metric_type=facts.config.evaluation.verifier.value,
            metric_name="share solved",
            metric_value=after,
        )
    ]


def _providers(facts: ReleaseFacts) -> str:
    names = [each.name for each in _sources(facts, Role.TEACHER)]
    owners = {name.partition("/")[0] if is_repository(name) else "the maker of this model" for name in names}
    return ", ".join(sorted(owners))


def _hub_datasets(facts: ReleaseFacts) -> list[str]:
    names = [each.name for each in _sources(facts, Role.PROMPTS)]
    return [name.removeprefix(DATA_PREFIX) for name in names if name.startswith(DATA_PREFIX)]


def _sources(facts: ReleaseFacts, role: Role) -> list[Source]:
    return [each for each in facts.decision.sources if each.role is role]


def _names(sources: list[Source]) -> str:
    names = [public_name(each) for each in sources if each.via is None]
    return ", ".join(name if name == HOME_MADE or "/" not in name else f"`{name}`" for name in names)
