"""The images as far as a machine without a Docker engine can judge them: hadolint, and what docker/README.md says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
HADOLINT = Path(sys.executable).parent / "hadolint"


@pytest.fixture(params=["cpu", "gpu"])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dockerfile(device: str) -> Path:
    return ROOT / "docker" / f"Dockerfile.{device}"


@pytest.fixture
def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction as (keyword, arguments), continuation lines joined."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE))
    pairs = (line.partition(" ") for line in text.splitlines() if line.strip())
    return [(keyword, arguments) for keyword, _, arguments in pairs]


def values(instructions: list[tuple[str, str]], keyword: str) -> list[str]:
    return [arguments for found, arguments in instructions if found == keyword]


def test_dockerfile_passes_hadolint(dockerfile: Path) -> None:
    done = subprocess.run([HADOLINT, "--no-color", dockerfile], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp\n")
    done = subprocess.run([HADOLINT, "--no-color", bad], capture_output=True, text=True)
    assert done.returncode != 0
    assert "DL3007" in done.stdout


def test_base_image_is_pinned_to_an_exact_release(instructions: list[tuple[str, str]]) -> None:
    bases = values(instructions, "FROM")
    assert bases
    assert all(re.search(r":\d+\.\d+\.\d+[^ ]*(@sha256:[0-9a-f]{64})?$", base) for base in bases)


def test_last_user_is_a_number_other_than_root(instructions: list[tuple[str, str]]) -> None:
    assert values(instructions, "USER")[-1] == "1000"
    last_run = max(index for index, (keyword, _) in enumerate(instructions) if keyword == "RUN")
    assert ("USER", "1000") in instructions[last_run:]


def test_entry_point_is_the_command_line(instructions: list[tuple[str, str]]) -> None:
    assert values(instructions, "ENTRYPOINT") == ['["stillhouse"]']


def test_environment_comes_from_the_lock_file_before_any_code(device: str, instructions: list[tuple[str, str]]) -> None:
    steps = [f"{keyword} {arguments}" for keyword, arguments in instructions]
    locks = steps.index("COPY requirements/ requirements/")
    install = next(i for i, step in enumerate(steps) if f"requirements/install.py --device {device} --no-dev" in step)
    code = [i for i, step in enumerate(steps) if step.startswith("COPY") and i != locks]
    assert locks < install < min(code)
    assert (ROOT / "requirements" / f"{device}.lock").exists()


def test_everything_copied_is_in_the_context(instructions: list[tuple[str, str]]) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {source.rstrip("/") for copy in values(instructions, "COPY") for source in copy.split()[:-1]}
    assert sources == allowed
    assert {"configs", "services", "training", "cluster"} <= sources


def test_ray_asks_for_a_token(instructions: list[tuple[str, str]]) -> None:
    assert "RAY_AUTH_MODE=token" in " ".join(values(instructions, "ENV"))


def test_images_differ_in_device_alone() -> None:
    """One recipe for both: what is not about CUDA or torch's index stands in both files."""
    cpu, gpu = ((ROOT / "docker" / f"Dockerfile.{device}").read_text() for device in ("cpu", "gpu"))
    body = [set(text[text.index("FROM ") :].splitlines()) for text in (cpu, gpu)]
    different = [line for line in body[0] ^ body[1] if not line.startswith("#")]
    words = ("CUDA", "NVIDIA", "TORCH_INDEX", "--device")
    assert [line for line in different if not any(word in line for word in words)] == []
