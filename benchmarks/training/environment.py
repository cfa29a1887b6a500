"""TRL's own virtual environment under a cache directory: made once, with the project's versions of what both need."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import ROOT, ArmFailed

REQUIREMENTS = Path(__file__).parent / "trl.txt"
TORCH_LOCK = ROOT / "requirements" / "torch.lock"
LOCK = ROOT / "requirements" / "cpu.lock"
# They want another torch build than a CPU has, and text needs none of them.
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")
INSTALL_S = 1800


def make_trl_environment(cache: Path) -> Path:
    """Return the interpreter of the environment, which is made unless the very same is there; `ArmFailed` says why not.

    torch comes through pip alone, first, as in `make setup`: which build that is, pip's own settings decide.
    """
    python = cache / f"trl-{_fingerprint()}" / "bin" / "python"
    stamp = python.parent.parent / "complete"
    if stamp.exists():
        return python
    print(f"installing TRL into {python.parent.parent}", flush=True)
    shutil.rmtree(python.parent.parent, ignore_errors=True)
    constraints = "\n".join(keep_constraints(LOCK.read_text().splitlines()))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(constraints)
        file.flush()
        _run([sys.executable, "-m", "venv", str(python.parent.parent)])
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*install, "-r", str(TORCH_LOCK)])
        _run([*install, "--constraint", file.name, "-r", str(REQUIREMENTS)])
    stamp.touch()
    return python


def keep_constraints(lines: list[str]) -> list[str]:
    """Return the pins of a lock file but those of `LEFT_OUT`."""
    return [line for line in lines if "==" in line and line.split("==")[0].strip().lower() not in LEFT_OUT]


def _fingerprint() -> str:
    texts = [path.read_text() for path in (REQUIREMENTS, TORCH_LOCK, LOCK)]
    return hashlib.sha256("\n".join([*texts, sys.version]).encode()).hexdigest()[:12]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise ArmFailed(f"{' '.join(command[:4])} took more than {INSTALL_S} s") from None
    if done.returncode:
        raise ArmFailed(f"{' '.join(command)} failed\n" + "\n".join(done.stderr.splitlines()[-10:]))
