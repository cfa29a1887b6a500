"""One arm as a process: it loads its libraries once and then trains what it is told, a JSON line in and three out.

`throughput` starts it. The first line comes when the warm-up is over, the second after the last step, so that CPU time
is taken between the two; the third has all steps. What libraries print goes to standard error.
"""

import json
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from benchmarks.answers import say, take_stdout
from benchmarks.training.arms import WARM_UP_STEPS, Arm, ArmSettings, Order, Step

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def main(arguments: list[str]) -> int:
    """Serve orders until standard input ends."""
    name, told = arguments[0], json.loads(arguments[1])
    answers = take_stdout()
    settings = ArmSettings(Path(told["directory"]), tuple(told["cores"]), tuple(told["others"]))
    os.environ.update(ENVIRONMENT)
    with open_arm(name, settings) as arm:
        say(answers, {"open": True})
        for line in sys.stdin:
            _serve(arm, Order(**json.loads(line)), answers)
    return 0


def open_arm(name: str, settings: ArmSettings) -> AbstractContextManager[Arm]:
    """The arm of a name; its libraries are imported here and not before, as each arm has others."""
    match name:
        case "torchrun":
            from benchmarks.training.arms.torchrun import open_torchrun

            return open_torchrun(settings)
        case "ray-train":
            from benchmarks.training.arms.ray_train import open_ray_train

            return open_ray_train(settings)
        case "bare":
            from benchmarks.training.arms.bare import open_bare

            return open_bare(settings)
        case "trl-packed" | "trl-padded":
            from benchmarks.training.arms.trl import open_trl

            return open_trl(settings, is_packed=name == "trl-packed")
    raise ValueError(f"there is no arm {name!r}")


def _serve(arm: Arm, order: Order, answers: TextIO) -> None:
    steps: list[Step] = []

    def on_step(step: Step) -> None:
        steps.append(step)
        if step.number in (WARM_UP_STEPS, order.num_steps):
            say(answers, {"step": step.number})

    arm.run(order, on_step)
    say(answers, {"steps": [asdict(step) for step in steps]})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
