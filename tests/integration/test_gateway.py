"""The gateway on a real Serve: two replicas of it before two of a teacher, and one quota for all of them."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.program import ROOT, end_session, environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

ASKED, QUOTA, USED, MOST = 50, 120, 6, 11  # requests at once; tokens of a key, used by a request, reserved by one
REPORT_S = 30


def ask_fifty(directory: str) -> None:
    """Serve an echo, ask it with OpenAI's client, and note what came of it; a process of its own, as Ray's are."""
    from upath import UPath

    from cluster.run_dir import RunDir
    from cluster.session import ray_session
    from configs.schema import ClusterConfig, DeadlinesConfig

    with ray_session(ClusterConfig(num_cpus=4), DeadlinesConfig(), RunDir(UPath(directory))):
        from ray import serve

        secret, port = _deploy(Path(directory) / "gateway")
        statuses = _ask(secret, port)
        metrics = _scrape({"ray_stillhouse_gateway_requests_total", "ray_stillhouse_gateway_tokens_total"})
        deployments = serve.status().applications["app"].deployments
        replicas = {name: sum(each.replica_states.values()) for name, each in deployments.items()}
        (Path(directory) / "told.json").write_text(
            json.dumps({"statuses": statuses, "replicas": replicas, "metrics": metrics})
        )


def _scrape(wanted: set[str]) -> list[str]:
    """Those of the names that Ray's metrics of this node have, given the time to report them."""
    import ray

    [node] = ray.nodes()
    give_up_at = time.monotonic() + REPORT_S
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
            found = wanted & set(re.findall(r"^(\w+)\{", answer.read().decode(), flags=re.MULTILINE))
        if found == wanted or time.monotonic() > give_up_at:
            return sorted(found)
        time.sleep(0.5)


def _deploy(directory: Path) -> tuple[str, int]:
    from ray import serve

    from configs.gateway import GatewayConfig
    from services.gateway.app import GatewaySpec
    from services.gateway.deployment import build_gateway, start_admission
    from tests.unit.services.gateway.gateway import MODEL, EchoAnswerer, add_key, free_port, make_spec

    config = GatewayConfig(replicas=2)
    secret, port = add_key(directory, lifetime_tokens=QUOTA, requests_per_minute=1000), free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    actor = start_admission(make_spec(directory, config), "test")
    teacher = serve.deployment(EchoAnswerer, num_replicas=2, ray_actor_options={"num_cpus": 0}).bind()
    spec = GatewaySpec(config, MODEL, {}, request_deadline_s=60.0)
    serve.run(build_gateway(spec, actor, teacher), name="app", route_prefix="/")
    return secret, port


def _ask(secret: str, port: int) -> list[int]:
    import openai

    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=secret, max_retries=0)

    def ask(number: int) -> int:
        messages = [{"role": "user", "content": "one two three"}]
        try:
            if number % 2:
                list(client.chat.completions.create(model="small", messages=messages, max_tokens=8, stream=True))
            else:
                client.chat.completions.create(model="small", messages=messages, max_tokens=8)
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    with ThreadPoolExecutor(max_workers=ASKED) as pool:
        return list(pool.map(ask, range(ASKED)))


def test_fifty_at_once_over_two_replicas_never_overshoot_the_quota(tmp_path: Path) -> None:
    from configs.gateway import GatewayConfig
    from services.gateway.audit import LOG_FILE, default_anchor, verify
    from tests.unit.services.gateway.gateway import make_spec

    code = "import sys; from tests.integration.test_gateway import ask_fifty; ask_fifty(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    shell = environment() | {"RAY_metrics_report_interval_ms": "1000"}
    with subprocess.Popen(command, cwd=ROOT, env=shell, start_new_session=True) as process:
        try:
            process.wait(150)
        finally:
            end_session(process.pid)
    assert process.returncode == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["replicas"] == {"gateway": 2, "EchoAnswerer": 2}
    assert told["metrics"] == ["ray_stillhouse_gateway_requests_total", "ray_stillhouse_gateway_tokens_total"]
    answered = told["statuses"].count(200)
    assert answered + told["statuses"].count(429) == ASKED
    assert QUOTA // MOST <= answered <= QUOTA // USED

    directory = tmp_path / "gateway"
    assert verify(directory / LOG_FILE, Path(make_spec(directory, GatewayConfig()).anchor)).fault is None
    assert default_anchor(directory).exists()
    entries = [json.loads(line) for line in (directory / LOG_FILE).read_text().splitlines()]
    settled = [each for each in entries if each["event"] == "settled"]
    assert len(settled) == answered
    assert {each["tokens"] for each in settled} == {USED}
    assert {each["address"] for each in entries if each["event"] == "reserved"} == {"127.0.0.1"}
