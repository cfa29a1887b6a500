"""The teacher that `stillhouse serve` puts before people: on the real engine, behind the gateway and without one."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import openai
import pytest

from services.watermark.key import WatermarkKey
from tests.integration.program import end_session, run_code, start, stillhouse, write_lines, write_recipe
from tests.unit.services.gateway.gateway import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

VARIABLE, SECRET = "TEST_WATERMARK_KEY", "the secret of a served mark, 32 letters or more"
READY_S = 100


@pytest.mark.slow  # a minute on two cores
def test_marked_teacher_behind_the_gateway_answers_and_is_counted(
    tmp_path: Path, qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    mark = {"key_env": VARIABLE, "key_id": WatermarkKey.of(SECRET).key_id, "channels": 2, "context_tokens": 1}
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        teacher={"model": str(qwen3), "engine": {"dtype": "float32", "max_model_len": 64}, "watermark": mark},
        prompts={"source": str(write_lines(tmp_path / "prompts.jsonl", [{"prompt": "1+1="}]))},
        sampling={"temperature": 1.0, "max_tokens": 8},
        student={"model": str(qwen3)},
        gateway={},
    )
    secret, port = stillhouse("gateway", "add-key", str(recipe), "ada").out.strip(), free_port()
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=secret, max_retries=0)
    asked = {"model": "test", "messages": [{"role": "user", "content": "1+1="}], "max_tokens": 30, "temperature": 1.0}
    with start("serve", str(recipe), "--port", str(port)) as process:
        try:
            wait_until_served(client, process)
            answers = [client.chat.completions.create(**asked, n=2) for _ in range(2)]
            with pytest.raises(openai.BadRequestError, match=r"n may be at most 2 .*watermark\.channels"):
                client.chat.completions.create(**asked, n=3)
            with pytest.raises(openai.BadRequestError):  # the engine's own: the prompt does not fit
                client.chat.completions.create(**{**asked, "messages": [{"role": "user", "content": "1" * 70}]})
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            end_session(process.pid)
    assert [(len(answer.choices), answer.usage.prompt_tokens) for answer in answers] == [(2, 5), (2, 5)]
    used = sum(answer.usage.total_tokens for answer in answers)
    assert f"{used:,} tokens used, 0 reserved" in stillhouse("gateway", "list-keys", str(recipe)).out
    assert stillhouse("gateway", "verify-log", str(tmp_path / "run" / "gateway")).code == 0


def wait_until_served(client: openai.OpenAI, process: "subprocess.Popen[str]") -> None:
    give_up_at = time.monotonic() + READY_S
    while True:
        try:
            client.models.list()
        except (openai.APIConnectionError, openai.NotFoundError, openai.InternalServerError):
            assert process.poll() is None
            assert time.monotonic() < give_up_at
            time.sleep(0.5)
        else:
            return


def serve_another_licence(directory: str, model: str) -> None:
    """Serve a model whose licence text has changed since it was decided on; a process of its own, as Ray's are."""
    from upath import UPath

    from cluster.run_dir import RunDir
    from cluster.session import ray_session
    from configs.schema import ClusterConfig, DeadlinesConfig
    from configs.terms.binding import Binding
    from configs.terms.texts import decided_texts

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
    outcome = run_code(code, str(tmp_path), str(model), timeout_s=150)
    assert outcome.code == 1
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith(f"configs.errors.UserError: {model}/LICENSE has sha256 ")
    assert "was decided on with" in last


# As on a standing cluster: a run has started Serve for itself, then somebody wants to serve people.
STANDING = """
import sys
from http.client import HTTPConnection
from upath import UPath
from cluster.run_dir import RunDir
from cluster.session import ray_session
from cluster.teachers import _start_serve
from configs.errors import UserError
from configs.schema import ClusterConfig, DeadlinesConfig

port = int(sys.argv[2])
with ray_session(ClusterConfig(num_cpus=1), DeadlinesConfig(), RunDir(UPath(sys.argv[1]))):
    from ray import serve

    _start_serve(None)
    try:
        _start_serve(port)
    except UserError as error:
        print(error)
    serve.shutdown()
    _start_serve(port)
    proxy = HTTPConnection("127.0.0.1", port, timeout=20)
    proxy.request("GET", "/-/healthz")
    print(proxy.getresponse().status)  # not well while there is no application, but there
    _start_serve(port)
    _start_serve(None)
"""


def test_serve_that_a_run_has_started_without_proxy_is_told(tmp_path: Path) -> None:
    port = free_port()
    outcome = run_code(STANDING, str(tmp_path), str(port))
    assert outcome.code == 0
    told, *_, status = outcome.out.splitlines()  # between them, what Ray says as it ends Serve
    assert told.startswith("Serve runs on this cluster without an HTTP proxy, as a run has started it")
    assert f"nobody would answer at 127.0.0.1:{port}" in told
    assert status == "503"
