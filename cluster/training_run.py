"""Runs a training job on the session's cluster and shows its metrics as progress."""

from dataclasses import replace

from cluster.context import RunContext
from configs.schema import Device
from training.job import JobDevice, StepMetrics, TrainJob, TrainResult
from training.output import load_result


def run_training(ctx: RunContext, job: TrainJob, device: Device) -> TrainResult:
    """Train, or return at once when this very job is done."""
    if (finished := load_result(job)) is not None:
        return finished
    resolved = ctx.session.device(device)
    job = replace(job, device=JobDevice(resolved.value))

    def show(metrics: StepMetrics) -> None:
        if not ctx.progress.counting:
            ctx.progress.expect(metrics.num_steps, "steps", metrics.step)
        ctx.progress.update(
            done=metrics.step,
            loss=metrics.loss,
            tokens_per_s=metrics.tokens_per_s,
            learning_rate=metrics.learning_rate,
        )

    from training.trainer import fit  # imports Ray Train, which a finished job does without

    result = fit(
        job,
        max_failures=job.training.max_failures,
        worker_start_deadline_s=ctx.config.deadlines.worker_start,
        on_metrics=show,
    )
    if result.overlong_dropped:
        ctx.progress.say(
            f"{job.name}: {result.overlong_dropped:,} rows are longer than training.sequence_length "
            f"({job.training.sequence_length}) and were left out"
        )
    return result
