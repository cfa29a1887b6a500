"""The teacher behind vLLM's own endpoint, as `stillhouse serve` puts it there for a recipe without a gateway."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.program import ROOT, end_session, environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]


def serve_another_licence(directory: str, model: str) -> None:
    """Serve a model whose licence text has changed since it was decided on; a process of its own, as Ray's are."""
    from upath import UPath

    from cluster.run_dir import RunDir
    from cluster.session import ray_session
    from configs.schema import ClusterConfig, DeadlinesConfig
    from configs.terms.texts import decided_texts
    from services.binding import Binding

    licence = Path(model) / "LICENSE"
    licence.write_text("You may.")
    binding = Binding(model, None, tuple(decided_texts(Path(model)).items()))
    licence.write_text("You may,")
    with ray_session(ClusterConfig(num_cpus=1), DeadlinesConfig(), RunDir(UPath(directory))):
        from ray import serve
        from ray.serve.llm import LLMConfig

        from services.llm_teacher import build_http_app

        config = LLMConfig(
            model_loading_config={"model_id": "small", "model_source": model},
            accelerator_config={"kind": "cpu"},
            placement_group_config={"bundles": [{"CPU": 0}]},
        )
        # Replicas are built in this process: their constructors are what is tested, not how Serve starts them.
        serve.run(build_http_app(config, binding), _local_testing_mode=True)


def test_replica_behind_the_plain_endpoint_loads_nothing_but_what_was_decided_on(tmp_path: Path, qwen3: Path) -> None:
    model = shutil.copytree(qwen3, tmp_path / "model")
    code = "import sys; from tests.integration.test_serve import serve_another_licence as f; f(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(tmp_path), str(model)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, err = process.communicate(timeout=150)
        finally:
            end_session(process.pid)
    assert process.returncode == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"configs.errors.UserError: {model}/LICENSE has sha256 ")
    assert "was decided on with" in last
