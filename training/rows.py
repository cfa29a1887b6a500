"""The rows that a student learns from, epoch by epoch: sealed files, or a table that grows while the teacher writes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from configs.errors import DeadlineExceeded
from training.commits import CommitLog, CommittedFile
from training.corpus import Corpus, FileMeasures, assemble_corpus, measure_files, require_rows
from training.job import Commits, DataFile, TrainJob
from training.parallel import World
from training.plan import EpochPlan, plan_epoch, plan_evaluation
from training.windows import WindowPlanner

_LOOK_EVERY_S = 0.5  # at the log, while there is nothing to learn; on an object store each look is a request


@dataclass(frozen=True, slots=True)
class Part:
    """Steps of one epoch that are planned together, over ``corpus``; ``evaluation`` is of the rows held back so far."""

    corpus: Corpus
    plan: EpochPlan
    evaluation: EpochPlan | None


class SealedRows:
    """All rows are there: an epoch is one part."""

    def __init__(self, corpus: Corpus, job: TrainJob) -> None:
        self.corpus = corpus
        self._config = job.training
        self._first_epoch = plan_epoch(corpus, job.training, 0)
        self._evaluation = plan_evaluation(corpus, job.training)

    @property
    def fill(self) -> float:
        """Row tokens as a part of the packed sequences' room."""
        return self._first_epoch.fill

    def count_steps(self) -> int:
        """Return the steps of all epochs."""
        # Each epoch shuffles anew and so may pack into a few sequences more or less.
        others = (plan_epoch(self.corpus, self._config, epoch) for epoch in range(1, self._config.epochs))
        return self._first_epoch.num_steps + sum(plan.num_steps for plan in others)

    def parts(self, epoch: int) -> Iterator[Part | None]:
        """Yield the parts of an epoch."""
        plan = plan_epoch(self.corpus, self._config, epoch) if epoch else self._first_epoch
        yield Part(self.corpus, plan, self._evaluation)


class GrowingRows:
    """The rows of a table that is still written. Rank 0 reads its log, and all ranks see the same part of it.

    The first epoch follows the order of the commits (`training.windows`), so it is the same whenever they are seen. All
    further ones are planned as on a sealed table. ``check`` is given the first files, on rank 0, before any is learnt.
    """

    def __init__(
        self, commits: Commits, job: TrainJob, world: World, check: Callable[[tuple[DataFile, ...]], None]
    ) -> None:
        self._commits, self._job, self._world, self._check = commits, job, world, check
        self._log = CommitLog(commits)
        self._committed: list[CommittedFile] = []
        self._measures: list[FileMeasures] = []
        self._grown_at = time.monotonic()
        self._num_tokens = self._num_packs = 0
        self.corpus = assemble_corpus((), (), job.training)

    @property
    def files(self) -> list[DataFile]:
        """What has been read so far, in the order of the commits."""
        return [each.file for each in self._committed]

    @property
    def fill(self) -> float:
        """Row tokens as a part of the packed sequences' room, as far as the first epoch was planned."""
        return self._num_tokens / (max(1, self._num_packs) * self._job.training.sequence_length)

    def parts(self, epoch: int) -> Iterator[Part | None]:
        """Yield the parts of an epoch as their rows come, and None, twice a second, while there is nothing to learn.

        Every rank takes the next one at the same place. DeadlineExceeded when the teacher commits nothing for too long.
        """
        config = self._job.training
        if epoch:
            yield from self._wait_for_all()
            corpus = self._in_order_of_shards()
            yield Part(corpus, plan_epoch(corpus, config, epoch), plan_evaluation(corpus, config))
            return
        planner = WindowPlanner(config)
        while True:
            for window in planner.extend(self.corpus, is_complete=self._is_complete):
                self._num_tokens += int(window.plan.step_tokens.sum())
                self._num_packs += len(window.plan.pack_starts) - 1
                yield Part(self.corpus, window.plan, plan_evaluation(self.corpus, config, window.end_row))
            if self._is_complete:
                return
            while not self._grow():
                yield None

    @property
    def _is_complete(self) -> bool:
        return len(self._committed) == self._commits.num_files

    def _wait_for_all(self) -> Iterator[None]:
        while not self._is_complete:
            if not self._grow():
                yield None

    def _grow(self) -> bool:
        """Take in what was committed meanwhile; False when nothing was. Every rank calls it at the same place."""
        fresh: list[CommittedFile] = []
        with self._world.agreement():
            if self._world.rank == 0:
                fresh = self._read_log()
        fresh = self._world.broadcast(fresh)
        if not fresh:
            return False
        config, files = self._job.training, [each.file for each in fresh]
        self._measures += measure_files(files, config, self._world, self._job.excluded)
        is_first = not self.corpus.is_training.any()
        self._committed += fresh
        self.corpus = assemble_corpus(self.files, self._measures, config)
        if is_first and self.corpus.is_training.any():
            with self._world.agreement():
                if self._world.rank == 0:
                    self._check(tuple(self.files))
        if self._is_complete:
            require_rows(self.corpus, config)
        return True

    def _read_log(self) -> list[CommittedFile]:
        # Shards that were planned later are another job's.
        fresh = self._log.read_new()[: self._commits.num_files - len(self._committed)]
        if fresh:
            self._grown_at = time.monotonic()
            return fresh
        deadline_s = self._commits.deadline_s
        if time.monotonic() - self._grown_at > deadline_s:
            raise DeadlineExceeded(
                f"the student has learnt from all {len(self._committed)} of {self._commits.num_files} shards that the "
                f"teacher has committed, and no other one came for {deadline_s:.0f} s (deadlines.replica_start and "
                "deadlines.no_progress)"
            )
        time.sleep(_LOOK_EVERY_S)
        return []

    def _in_order_of_shards(self) -> Corpus:
        order = np.argsort([each.shard for each in self._committed])
        files, measures = self.files, self._measures
        return assemble_corpus([files[i] for i in order], [measures[i] for i in order], self._job.training)
