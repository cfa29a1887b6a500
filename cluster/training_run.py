"""Runs training jobs on the session's cluster and shows their metrics as progress."""

from collections.abc import Callable
from dataclasses import replace

from cluster.context import RunContext
from cluster.holders import describe_holders
from cluster.limits import check_demands
from cluster.pools import workers_demand
from configs.errors import DeadlineExceeded
from configs.schema import Device
from training.job import JobDevice, StepMetrics, TrainJob, TrainResult
from training.output import load_result


def run_training(
    ctx: RunContext,
    jobs: list[TrainJob],
    device: Device,
    later_s: float | None = None,
    *,
    labels: dict[str, str] | None = None,
    on_metrics: Callable[[StepMetrics], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[TrainResult]:
    """Train one after another in the same workers; jobs that are done already are not done again.

    ``later_s`` is what the phases after this one are expected to take. Workers are placed on nodes with the ``labels``.
    ``on_metrics`` is called with each line of metrics, those of earlier commands among them. ``should_stop`` is asked
    several times a second; `training.trainer.Stopped` is raised once it says so and all is saved.
    """
    finished = [result for job in jobs if (result := load_result(job)) is not None]
    if len(finished) == len(jobs):
        return finished
    ctx.budget.check()
    resolved = JobDevice(ctx.session.device(device).value)
    if ctx.session.embedded:  # elsewhere a node may be missing for a moment, which the wait for workers bridges
        check_demands([workers_demand(jobs[0].training, on_gpu=resolved is JobDevice.GPU)], ctx.session)
    jobs = [replace(job, device=resolved) for job in jobs]
    names = [job.name for job in jobs]

    def show(job: TrainJob, metrics: StepMetrics) -> None:
        on_metrics(metrics)
        if ctx.progress.label != job.name:
            ctx.progress.expect(metrics.num_steps, f"steps of {job.name}", metrics.step, label=job.name)
        step_s = metrics.seconds / min(metrics.step, job.training.log_every)
        others = len(names) - 1 - names.index(job.name)
        ctx.progress.update(
            done=metrics.step,
            later_s=None if later_s is None else later_s + others * metrics.num_steps * step_s,
            loss=metrics.loss,
            tokens_per_s=metrics.tokens_per_s,
            learning_rate=metrics.learning_rate,
            mfu=metrics.mfu,
            cost_usd=ctx.budget.spent().usd,
        )

    from training.trainer import Stopped, fit_jobs  # imports Ray Train, which a finished job does without

    try:
        results = fit_jobs(
            jobs,
            max_failures=jobs[0].training.max_failures,
            worker_start_deadline_s=ctx.config.deadlines.worker_start,
            on_metrics=show,
            should_stop=lambda: should_stop() or ctx.budget.is_reached(),
            labels=labels,
        )
    except DeadlineExceeded as error:
        raise DeadlineExceeded(f"{error}; held now: {describe_holders()}") from error
    except Stopped as stopped:
        ctx.progress.say(f"{ctx.progress.label or jobs[0].name}: {stopped}")
        ctx.budget.check()
        raise
    for job, result in zip(jobs, results, strict=True):
        if result.overlong_dropped:
            ctx.progress.say(
                f"{job.name}: {result.overlong_dropped:,} rows are longer than training.sequence_length "
                f"({job.training.sequence_length}) and were left out"
            )
    return results
