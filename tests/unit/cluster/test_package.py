"""The package that a job brings along: what Ray packs of this checkout, and what it leaves out."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package

from cluster.jobs import Metadata, start_job
from cluster.run_dir import PROJECT_ROOT
from cluster.session import WORKING_DIR_EXCLUDES

pytestmark = pytest.mark.unit

MOST_BYTES = 10_000_000


class Submitted:
    """Stands for the client: keeps what was asked of Ray."""

    def submit_job(self, **options: Any) -> str:
        self.runtime_env = options["runtime_env"]
        return str(options["submission_id"])


def pack(directory: Path, target: Path, excludes: list[str], *, has_gitignore: bool) -> set[str]:
    """Names of the files in the package that Ray's client makes and uploads."""
    create_package(str(directory), target, include_gitignore=has_gitignore, excludes=excludes)
    with ZipFile(target) as package:
        return {name for name in package.namelist() if not name.endswith("/")}


def test_package_of_this_checkout_is_small_and_has_all_that_a_job_needs(tmp_path: Path) -> None:
    client: Any = Submitted()
    start_job(client, "python", Metadata("small", "run", "recipe.yaml", "/mnt/small"), 30.0)
    environment, target = client.runtime_env, tmp_path / "package.zip"
    names = pack(Path(environment["working_dir"]), target, environment["excludes"], has_gitignore=True)
    assert target.stat().st_size < MOST_BYTES
    needed = {
        str(path.relative_to(PROJECT_ROOT))
        for package in ("configs", "services", "training", "cluster")
        for path in (PROJECT_ROOT / package).rglob("*")
        if path.suffix in {".py", ".yaml", ".jinja", ".md", ".json"} and "__pycache__" not in path.parts
    }
    assert {"cluster/__main__.py", "configs/recipes/quickstart.yaml", "configs/prices.yaml"} <= needed
    assert needed - names == set()
    assert {name.split("/")[0] for name in names} & {".git", ".venv", "runs", "tests", "docs", "benchmarks"} == set()


def test_what_grows_in_a_working_directory_is_left_out_without_gitignore_as_well(tmp_path: Path) -> None:
    kept = {"cluster/cli.py", "configs/recipes/mine.yaml", "pyproject.toml"}
    left_out = {
        *(".venv/lib/python3.11/site-packages/torch/lib/libtorch.so", "runs/quickstart/completions/part-1.parquet"),
        *(".git/objects/pack/1.pack", "runs/.cache/teachers/1/model.safetensors", ".mypy_cache/3.11/a.json"),
        *("cluster/__pycache__/cli.cpython-311.pyc", ".pytest_cache/v/cache", "tests/unit/test_cli.py"),
        *("docs/cli.md", "benchmarks/makespan.py", ".ruff_cache/0.1/1"),
    }
    for name in kept | left_out:
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    packed = pack(tmp_path / "project", tmp_path / "package.zip", WORKING_DIR_EXCLUDES, has_gitignore=False)
    assert packed == kept
