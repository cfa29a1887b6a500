"""The same promises on an object store: an S3 server on loopback, hurt by a proxy of our own in front of it."""

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from deltalake import DeltaTable
from moto.server import ThreadedMotoServer

from configs.errors import UserError
from services.client import ShardClient
from services.dataset import read_ledger
from services.table import require_put_if_absent, shard_files
from tests.chaos import checks
from tests.chaos.driver import client_spec, plan, tasks
from tests.chaos.local import Store, local_job, make_shards, seal_run, store, to_block

__all__ = ["store"]  # the fixture
pytestmark = pytest.mark.chaos

LOOPBACK = "127.0.0.1"
BUCKET = "distil"
CONDITION = "If-None-Match"


@dataclass
class Faults:
    """What the proxy does to the next puts of the transaction log; each entry is used once."""

    log_puts: list[str] = field(default_factory=list)
    drop_condition: bool = False
    seen: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[tuple[str, int]]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def endpoint(s3_server: tuple[str, int]) -> Iterator[tuple[str, Faults]]:
    """The proxy's address, and what makes it misbehave."""
    faults = Faults()
    proxy = ThreadingHTTPServer((LOOPBACK, 0), _proxy(s3_server, faults))
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{proxy.server_port}", faults
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(10)


@pytest.fixture
def faults(endpoint: tuple[str, Faults], monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """An endpoint with an empty bucket, in the environment where s3fs and delta-rs look for it."""
    address, faults = endpoint
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": LOOPBACK,
        "no_proxy": LOOPBACK,
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").create_bucket(Bucket=BUCKET)
    try:
        yield faults
    finally:
        faults.log_puts, faults.seen, faults.drop_condition = [], [], False
        bucket.objects.all().delete()
        bucket.delete()


def _proxy(server: tuple[str, int], faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = dict(self.headers.items())
            fault = ""
            if self.command == "PUT" and "/_delta_log/" in self.path and self.path.endswith(".json"):
                faults.seen.append(headers.get(CONDITION, headers.get(CONDITION.lower(), "")))
                fault = faults.log_puts.pop(0) if faults.log_puts else ""
            if faults.drop_condition:
                headers = {name: value for name, value in headers.items() if name.lower() != CONDITION.lower()}
            if fault == "refuse":
                self._reply(500, {}, b"")
                return
            status, answer, content = _forward(server, self.command, self.path, headers, body)
            if fault == "lose_answer":
                self._reply(500, {}, b"")
            elif fault == "drop_connection":
                self.close_connection = True
                self.connection.close()
            else:
                self._reply(status, answer, content)

        def _reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Tests say what matters."""

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_any

    return Proxy


def _forward(
    server: tuple[str, int], method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection(*server, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def test_run_on_an_object_store_is_exactly_once(faults: Faults, store: Store) -> None:
    job = local_job(f"s3://{BUCKET}/run")
    assert len(make_shards(job)) == 3
    seal_run(job)
    checks.check_answers(job)
    assert set(faults.seen) == {"*"}, "every commit must be a put-if-absent"


def test_racing_clients_on_an_object_store_commit_once(faults: Faults, store: Store) -> None:
    checks.check_race(f"s3://{BUCKET}/race", store)


@pytest.mark.parametrize("fault", ["refuse", "lose_answer", "drop_connection"])
def test_hurt_commit_is_resolved_by_reading_back(faults: Faults, store: Store, fault: str) -> None:
    job = local_job(f"s3://{BUCKET}/{fault}", num_prompts=8)
    plan(job)
    faults.log_puts.append(fault)
    [summary] = ShardClient(client_spec(job))(to_block(tasks(job))).to_pylist()
    assert faults.log_puts == []
    assert summary["error"] is None
    assert summary["accepted"] + summary["rejected"] == 8
    seal_run(job)
    checks.check_answers(job)
    assert len(list(shard_files(DeltaTable(job.completions_uri)))) == 1


def test_store_without_put_if_absent_is_refused(faults: Faults, store: Store) -> None:
    faults.drop_condition = True
    with pytest.raises(UserError, match="has no put-if-absent"):
        make_shards(local_job(f"s3://{BUCKET}/unsafe"))


def test_unsafe_renames_are_refused(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    with pytest.raises(UserError, match="unset AWS_S3_ALLOW_UNSAFE_RENAME"):
        require_put_if_absent(f"s3://{BUCKET}/unsafe")


def test_reader_of_an_object_store_sees_a_balanced_ledger(faults: Faults, store: Store) -> None:
    job = local_job(f"s3://{BUCKET}/ledger")
    make_shards(job, limit=2)
    ledger = read_ledger(job.completions_uri, 24)
    assert (ledger.accepted + ledger.rejected, ledger.pending) == (16, 8)
