"""The phases in their order, and the commands that do some of them. Each phase knows when it is done."""

from collections.abc import Callable
from typing import Any

from cluster.context import RunContext
from cluster.phases.evaluate import evaluate
from cluster.phases.export import export
from cluster.phases.make_teacher import make_teacher
from cluster.phases.overlap import TEACHER_PHASES, generate_and_train
from cluster.phases.plan import plan
from cluster.phases.terms import check_terms
from cluster.phases.train import train
from cluster.run_estimate import keep_estimate

Phase = Callable[[RunContext], Any]

PLAN: tuple[Phase, ...] = (check_terms, make_teacher, plan, keep_estimate)
GENERATE: tuple[Phase, ...] = (*PLAN, *TEACHER_PHASES)
TRAIN: tuple[Phase, ...] = (train,)
EVALUATE: tuple[Phase, ...] = (evaluate,)
EXPORT: tuple[Phase, ...] = (export,)
RUN: tuple[Phase, ...] = (*PLAN, generate_and_train, *EVALUATE, *EXPORT)
