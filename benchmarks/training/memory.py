"""Peak memory of a rank when FSDP2 spreads a student over two, against one that holds it alone."""

from pathlib import Path

from benchmarks.statistics import median_interval
from benchmarks.training.goals import Line
from benchmarks.training.recovery import read_metrics, train_until, write_job
from benchmarks.training.workload import Workload


def measure_memory(workload: Workload, small: Workload, directory: Path) -> list[Line]:
    """Return the ratio of what a rank needs beyond interpreter and libraries, which ``small`` is there to tell.

    Two ranks load other libraries than one, so each side has its own.
    """
    one, two = ((_peak_mib(workload, ranks, directory), _peak_mib(small, ranks, directory)) for ranks in (1, 2))
    note = f"{two[0]:,.0f} and {one[0]:,.0f} MiB in all, {two[1]:,.0f} and {one[1]:,.0f} of them libraries"
    return [Line("memory", median_interval([(two[0] - two[1]) / (one[0] - one[1])]), note)]


def _peak_mib(workload: Workload, num_ranks: int, directory: Path) -> float:
    # Activations are what the ranks do not share; recomputing them leaves the state, which is what FSDP2 spreads.
    own = directory / f"memory-{workload.shape}-{num_ranks}"
    job = write_job(workload, own, checkpoint_every=10**6, activation_checkpointing="full")
    train_until(job, num_ranks, None)
    return float(read_metrics(job)[-1]["peak_memory_mib"])
