"""Gives a training job to Ray Train: places the workers, follows their metrics, brings a user's mistake back.

The only module of the package that imports Ray. Resume is the loop's own, so a restarted worker group simply calls
`training.loop.train` again.
"""

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import ray
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    RunningState,
    TrainControllerState,
)
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.util.placement_group import placement_group, remove_placement_group

from configs.errors import DeadlineExceeded, UserError
from configs.schema import TrainingConfig
from training import storage
from training.job import JobDevice, StepMetrics, TrainJob, TrainResult
from training.metrics import following_metrics
from training.output import load_result
from training.parallel import COLLECTIVE_TIMEOUT

logger = logging.getLogger(__name__)

_FOLLOW_SECONDS = 0.5
_STOP_FILE = "stop"
_LOOK_FOR_STOP_SECONDS = 2.0  # between two looks of a worker: on an object store each is a request
_ASK_TO_STOP_SECONDS = 0.2  # between two questions of the driver, in its own process

# Read by Ray Train when a run starts; it offers no other way to set them.
_RAY_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # its 2 s would be the time until the end of a run is noticed
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # of its 5 s a cloud that gives 30 s of notice has few to spare
    # An elastic group counts on nodes that are being drained, on which nothing is placed; then it counts again.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in a worker as in the driver
    "RAY_TRAIN_METRICS_ENABLED": "0",  # metrics.jsonl has them
}
# The watcher is one more process that imports for seconds; a lone machine that is drained takes the driver along.
_LONE_MACHINE_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}

# Ray runs the loop on a thread, and glibc gives a thread a heap of its own, in pieces of 64 MiB: steps take 3 % longer
# than on a main thread. That all threads share one heap has to be said before the process starts.
_CPU_WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


class Stopped(Exception):
    """``should_stop`` said so; the job has a checkpoint of its last step and goes on from there when run again."""


class _NotPlaced(Exception):
    """No worker group for as long as `deadlines.worker_start`; crosses from Ray Train's controller.

    Its words are what the last try failed with; none where there was no place.
    """


class WholeGroups(ElasticScalingPolicy):
    """Ray's elastic policy with as many workers as fill groups of ``group_size``."""

    def __init__(self, scaling_config: ScalingConfig, group_size: int) -> None:
        super().__init__(scaling_config)
        self._group_size = group_size

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        count: int = super()._count_possible_workers(reserved_resources)
        return count - count % self._group_size


class WaitWatch(ControllerCallback):
    """Ends a run whose workers have no place for ``deadline_s``, or that is to stop while they have none.

    Ray Train waits for ever, and its ``controller_failure_limit`` is no bound: it counts over the whole run, and an
    elastic group below its fewest workers fails nothing. Workers alone read the stop file, and here are none.
    It runs in the controller, after each of its steps; a step that asks for a fixed group takes 20 s.
    """

    def __init__(self, output_dir: str, deadline_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop, self._deadline_s, self._clock = _StopFile(output_dir), deadline_s, clock
        self._waits_since: float | None = None
        self._failure = ""

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Raises `_NotPlaced` or `Stopped`, neither of which Ray Train tries again."""
        if isinstance(current_state, RunningState):
            self._waits_since, self._failure = None, ""
        if isinstance(current_state, ReschedulingState):
            failure = getattr(current_state.training_failed_error, "controller_failure", None)
            # Of a group without a place Ray Train says no more than that it was not there in time.
            self._failure = str(failure) if isinstance(failure, WorkerGroupStartupFailedError) else ""
        if not isinstance(current_state, (InitializingState, RestartingState, ReschedulingState)):
            return
        if self._waits_since is None:
            self._waits_since = self._clock()
        if self._is_to_stop():
            raise Stopped("stopped while it waited for a place for its workers")
        if self._clock() - self._waits_since >= self._deadline_s:
            raise _NotPlaced(self._failure)

    def _is_to_stop(self) -> bool:
        try:
            return self._stop.is_there()
        except Exception:  # of a storage that does not answer once, which must not end a run that only waits
            logger.warning("whether training is to stop could not be read; tried again", exc_info=True)
            return False


class _Trainer(TorchTrainer):
    """Ray's trainer without its placement-group cleaner, and with whole tensor-parallel groups alone.

    The cleaner is one more process that imports Ray Train for seconds, and it logs a warning a second on a cluster
    without a dashboard. What it guards against, a controller that dies alone, ends here with the driver's own job.
    """

    def __init__(self, *arguments: Any, group_size: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._group_size = group_size

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if self._group_size > 1 and isinstance(parts["scaling_policy"], ElasticScalingPolicy):
            parts["scaling_policy"] = WholeGroups(self.scaling_config, self._group_size)
        return super()._initialize_and_run_controller(**parts)


def fit(
    job: TrainJob,
    *,
    max_failures: int,
    worker_start_deadline_s: float,
    on_metrics: Callable[[StepMetrics], None] | None = None,
) -> TrainResult:
    """Run ``job`` on the connected Ray cluster and return its result; a finished job returns at once.

    ``on_metrics`` is called in this process, on another thread, with each line of ``metrics.jsonl`` from the first
    on. UserError of a worker is raised here with the same sentence and without retries; DeadlineExceeded when the
    fewest workers cannot be placed within ``worker_start_deadline_s``, at the start or after a loss; Ray's
    TrainingFailedError after ``max_failures`` restarts. A group that is given notice of a node's end saves a
    checkpoint, stops, and goes on from that step on what is left or comes instead, as often as it takes.
    """
    report = None if on_metrics is None else lambda _, metrics: on_metrics(metrics)
    return fit_jobs(
        [job], max_failures=max_failures, worker_start_deadline_s=worker_start_deadline_s, on_metrics=report
    )[0]


def fit_jobs(
    jobs: Sequence[TrainJob],
    *,
    max_failures: int,
    worker_start_deadline_s: float,
    on_metrics: Callable[[TrainJob, StepMetrics], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    labels: dict[str, str] | None = None,
) -> list[TrainResult]:
    """Run several jobs one after another in the same workers, which start once; otherwise as `fit`.

    ``should_stop`` is asked several times a second, on another thread; once it says so, the workers save a checkpoint
    within a few steps and Stopped is raised. Workers are placed on nodes that have the ``labels``, on any without.
    The jobs must agree on device, ``training.num_workers`` and ``training.threads_per_worker``.
    """
    jobs = [replace(job, output_dir=_absolute(job.output_dir)) for job in jobs]
    if len({(job.device, job.training.num_workers, job.training.threads_per_worker) for job in jobs}) != 1:
        raise ValueError("jobs that share workers must agree on device, num_workers and threads_per_worker")
    finished = [load_result(job) for job in jobs]
    if None not in finished:
        return [result for result in finished if result is not None]
    with _following(jobs, on_metrics), _stopping(jobs, should_stop) as is_stopping:
        _check_placement(jobs[0], worker_start_deadline_s, labels or {}, is_stopping)
        while "preempted" in (answer := _run_trainer(jobs, max_failures, worker_start_deadline_s, labels or {})):
            if is_stopping():
                raise Stopped(answer["preempted"])
            logger.warning("%s", answer["preempted"])
            _check_placement(jobs[0], worker_start_deadline_s, labels or {}, is_stopping)
    if "user_error" in answer:
        raise UserError(answer["user_error"])
    return [TrainResult.from_dict(result) for result in answer["results"]]


def _run_trainer(
    jobs: list[TrainJob], max_failures: int, worker_start_deadline_s: float, labels: dict[str, str]
) -> dict[str, Any]:
    """Return what rank 0 answered."""
    first = jobs[0]
    is_gpu = first.device is JobDevice.GPU
    is_elastic = first.training.min_workers < first.training.max_workers
    is_lone_machine = not is_gpu and not is_elastic and len([node for node in ray.nodes() if node["Alive"]]) == 1
    ray_dir = storage.join(first.output_dir, "ray_train")
    trainer = _Trainer(
        _run_worker,
        train_loop_config={"jobs": [job.to_json() for job in jobs]},
        group_size=math.lcm(*(job.training.tensor_parallel_size for job in jobs)),
        torch_config=TorchConfig("nccl" if is_gpu else "gloo", timeout_s=int(COLLECTIVE_TIMEOUT.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=first.training.num_workers,
            use_gpu=is_gpu,
            resources_per_worker=_bundle(first),
            label_selector=labels or None,
            elastic_resize_monitor_interval_s=first.training.resize_check_every,
        ),
        run_config=RunConfig(
            name=first.name,
            storage_path=ray_dir,
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[WaitWatch(first.output_dir, worker_start_deadline_s)],
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={} if is_gpu else {"env_vars": _CPU_WORKER_ENVIRONMENT},
        ),
    )
    try:
        environment = _RAY_TRAIN_ENVIRONMENT | (_LONE_MACHINE_ENVIRONMENT if is_lone_machine else {})
        with _environment(environment), _interruptible():
            answer: dict[str, Any] = trainer.fit().return_value
            return answer
    except ControllerError as error:
        if isinstance(error.controller_failure, _NotPlaced):
            if why := str(error.controller_failure):
                raise DeadlineExceeded(
                    f"no group of training workers could be started in {worker_start_deadline_s:g} s "
                    f"(deadlines.worker_start); the last one failed with: {why}"
                ) from None
            raise _unplaced(first, worker_start_deadline_s, labels) from None
        if isinstance(error.controller_failure, Stopped):
            raise error.controller_failure from None
        raise
    finally:
        # Ray Train's own bookkeeping, of no use once it ended: the loop's checkpoints are elsewhere.
        storage.remove_tree(ray_dir)


def _run_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run the loop in a Ray Train worker.

    A UserError comes back as data, since raising would be retried, and so does a preemption, which Ray Train would
    count among the failures.
    """
    from training.loop import train  # loads transformers, which the driver does without
    from training.parallel import joined_world
    from training.preemption import Preempted

    jobs = [TrainJob.from_json(text) for text in config["jobs"]]
    try:
        with joined_world(jobs[0].device) as world:
            is_noticed = partial(_is_noticed, _StopFile(jobs[0].output_dir))
            return {"results": [asdict(train(job, lambda _: None, world, is_noticed)) for job in jobs]}
    except Preempted as preempted:
        return {"preempted": str(preempted)}
    except UserError as error:
        return {"user_error": str(error)}


class _StopFile:
    """The driver's word to its workers, of which any may see it first: a file in the first job's directory."""

    def __init__(self, output_dir: str) -> None:
        self._uri = storage.join(output_dir, _STOP_FILE)
        self._looked_at = 0.0
        self._is_there = False

    def write(self) -> None:
        storage.write_text(self._uri, "")

    def remove(self) -> None:
        storage.remove_tree(self._uri)

    def is_there(self) -> bool:
        """Return what it was at the last look, a few seconds ago at most."""
        if time.monotonic() - self._looked_at >= _LOOK_FOR_STOP_SECONDS:
            self._looked_at = time.monotonic()
            self._is_there = storage.exists(self._uri)
        return self._is_there


@contextlib.contextmanager
def _stopping(jobs: list[TrainJob], should_stop: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Ask ``should_stop`` while the block runs, and tell the workers; yields whether they were told."""
    file, done, told = _StopFile(jobs[0].output_dir), threading.Event(), threading.Event()
    file.remove()  # of a driver that was killed

    def ask() -> None:
        while not done.wait(_ASK_TO_STOP_SECONDS):
            try:
                if should_stop():
                    told.set()
                    file.write()
                    return
            except Exception:  # of a storage or a cluster that does not answer once; a budget must outlive that
                logger.warning("whether training is to stop could not be asked or told; tried again", exc_info=True)
                done.wait(_LOOK_FOR_STOP_SECONDS)

    thread = threading.Thread(target=ask, name="training-stop", daemon=True)
    thread.start()
    try:
        yield told.is_set
    finally:
        done.set()
        thread.join()
        file.remove()


def _is_noticed(stop: _StopFile) -> bool:
    """Return whether Ray told this worker that a node of the group is being drained, or the driver that it is to stop.

    The public `ray.train.get_preemption_info` is a barrier through an actor, too much to pay at each step; the loop
    agrees on what it hears by itself.
    """
    return get_train_context().preemption_context.preemption_info is not None or stop.is_there()


def _bundle(job: TrainJob) -> dict[str, float]:
    """Return the resources of one worker; its threads decide its CPUs."""
    cpus = float(job.training.threads_per_worker)
    return {"CPU": cpus} | ({"GPU": 1.0} if job.device is JobDevice.GPU else {})


def _check_placement(job: TrainJob, deadline_s: float, labels: dict[str, str], is_stopping: Callable[[], bool]) -> None:
    """Wait until the fewest workers could be placed. An autoscaler sees the demand.

    Raises `Stopped` once ``is_stopping`` says so: a cluster that has no place costs as much as one that trains.
    """
    num_workers = job.training.min_workers
    selectors = [labels] * num_workers if labels else None
    group = placement_group([_bundle(job)] * num_workers, strategy="PACK", bundle_label_selector=selectors)
    give_up_at = time.monotonic() + deadline_s
    try:
        while not (is_placed := group.wait(max(0.0, min(give_up_at - time.monotonic(), _LOOK_FOR_STOP_SECONDS)))):
            if is_stopping():
                raise Stopped("stopped while it waited for a place for its workers")
            if time.monotonic() >= give_up_at:
                break
    finally:
        remove_placement_group(group)
    if not is_placed:
        raise _unplaced(job, deadline_s, labels)


def _unplaced(job: TrainJob, deadline_s: float, labels: dict[str, str]) -> DeadlineExceeded:
    bundle, num_workers = _bundle(job), job.training.min_workers
    wanted = ", ".join(f"{amount * num_workers:g} {name}s" for name, amount in bundle.items())
    free = ", ".join(f"{ray.available_resources().get(name, 0.0):g} {name}s" for name in bundle)
    where = f" on nodes with the labels {labels} (cluster.student_labels)" if labels else ""
    return DeadlineExceeded(
        f"training.num_workers={_shown(job.training)} wants {wanted}{where} and after {deadline_s:g} s the cluster has "
        f"{free} free; lower training.num_workers, free what holds them, or raise deadlines.worker_start"
    )


def _shown(config: TrainingConfig) -> str:
    """Return the number of workers as the command line has it."""
    return str(config.num_workers if isinstance(config.num_workers, int) else [*config.num_workers]).replace(" ", "")


def _following(
    jobs: list[TrainJob], on_metrics: Callable[[TrainJob, StepMetrics], None] | None
) -> contextlib.AbstractContextManager[None]:
    """Hand new lines of metrics to ``on_metrics`` while the block runs."""
    if on_metrics is None:
        return contextlib.nullcontext()
    output_dirs = [job.output_dir for job in jobs]
    return following_metrics(output_dirs, lambda i, metrics: on_metrics(jobs[i], metrics), _FOLLOW_SECONDS)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the block with KeyboardInterrupt once Ray Train has stopped its workers.

    Its own handler exits the program with status 0, and stays installed for the rest of the program.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    previous = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in previous.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _absolute(uri: str) -> str:
    return uri if "://" in uri else os.path.abspath(uri)
