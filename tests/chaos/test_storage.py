"""The same promises on an object store: an S3 server on loopback, hurt by a proxy of our own in front of it."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from deltalake import DeltaTable
from moto.server import ThreadedMotoServer

from configs.errors import UserError
from services.dataset import read_ledger
from services.table import require_put_if_absent, shard_files
from tests.chaos import checks
from tests.chaos.driver import plan, tasks
from tests.chaos.local import Store, local_job, make_shards, store, stream

__all__ = ["store"]  # the fixture
pytestmark = pytest.mark.chaos

LOOPBACK = "127.0.0.1"
BUCKET = "distil"
CONDITION = "If-None-Match"
# aiohttp and s3fs together send a put whose connection broke ten times under one name before they tell their caller.
HURT_PUTS = {"refuse": 2, "lose_answer": 2, "drop_connection": 12, "cut": 12}
SLOW_S = 1.5


class Fault(StrEnum):
    """What the proxy does to a put instead of passing it on and its answer back."""

    REFUSE = "refuse"  # with 500
    LOSE_ANSWER = "lose_answer"  # applied, and answered with 500
    DROP_CONNECTION = "drop_connection"  # applied, and not answered at all
    CUT = "cut"  # the connection ends in the middle of the body
    SLOW = "slow"  # applied, and answered late
    SLOW_REFUSE = "slow_refuse"


@dataclass
class Faults:
    """What the proxy does to the next puts of the transaction log and of data files; each entry is used once."""

    log_puts: list[Fault] = field(default_factory=list)
    data_puts: list[Fault] = field(default_factory=list)
    drop_condition: bool = False
    conditions: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def take(self, path: str, condition: str) -> Fault | None:
        """Note a put, and say what is to happen to it."""
        if "/_delta_log/" in path and path.endswith(".json"):
            self.conditions.append(condition)
            return self.log_puts.pop(0) if self.log_puts else None
        if path.endswith(".parquet") and "/completions/shard-" in path:
            self.names.append(path.rpartition("/")[2])
            return self.data_puts.pop(0) if self.data_puts else None
        return None

    def clear(self) -> None:
        """As it was at first."""
        vars(self).update(vars(Faults()))


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that has given up on a late answer is no news."""


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
    proxy = _Server((LOOPBACK, 0), _proxy(s3_server, faults))
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
        "AWS_MAX_ATTEMPTS": "1",  # botocore's own; s3fs and the program try again
        "NO_PROXY": LOOPBACK,
        "no_proxy": LOOPBACK,
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3").create_bucket(Bucket=BUCKET)
    try:
        yield faults
    finally:
        faults.clear()
        bucket.objects.all().delete()
        bucket.delete()


def _proxy(server: tuple[str, int], faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_any(self) -> None:
            length, fault = int(self.headers.get("Content-Length") or 0), None
            if self.command == "PUT":
                fault = faults.take(urlsplit(self.path).path, self.headers.get(CONDITION, ""))
            if fault is Fault.CUT:
                self.rfile.read(length // 2)
                self._hang_up()
                return
            body, headers = self.rfile.read(length), dict(self.headers.items())
            if faults.drop_condition:
                headers = {name: value for name, value in headers.items() if name.lower() != CONDITION.lower()}
            if fault in (Fault.SLOW, Fault.SLOW_REFUSE):
                time.sleep(SLOW_S)
            if fault in (Fault.REFUSE, Fault.SLOW_REFUSE):
                self._reply(500, {}, b"")
                return
            status, answer, content = _forward(server, self.command, self.path, headers, body)
            if fault is Fault.LOSE_ANSWER:
                self._reply(500, {}, b"")
            elif fault is Fault.DROP_CONNECTION:
                self._hang_up()
            else:
                self._reply(status, answer, content)

        def _hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

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
    checks.check_answers(job)
    assert set(faults.conditions) == {"*"}, "every commit must be a put-if-absent"


def test_racing_commands_on_an_object_store_commit_once(faults: Faults, store: Store) -> None:
    upload_and_commit = (6, 7)  # of the first shard
    assert checks.check_race(f"s3://{BUCKET}/race", store, upload_and_commit) == 2


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.LOSE_ANSWER, Fault.DROP_CONNECTION, Fault.CUT, Fault.SLOW])
def test_hurt_commit_is_resolved_by_reading_back(faults: Faults, store: Store, fault: Fault) -> None:
    job = local_job(f"s3://{BUCKET}/{fault}", num_prompts=8)
    plan(job)
    todo = tasks(job)
    faults.log_puts += [fault] * 2  # of the claim and of the commit
    [summary] = stream(job, todo)
    assert faults.log_puts == []
    assert summary["accepted"] + summary["rejected"] == 8
    checks.check_answers(job)
    assert len(list(shard_files(DeltaTable(job.completions_uri)))) == 1


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.LOSE_ANSWER, Fault.DROP_CONNECTION, Fault.CUT])
def test_hurt_upload_is_stored_again_under_a_fresh_name(faults: Faults, store: Store, fault: Fault) -> None:
    job = local_job(f"s3://{BUCKET}/upload-{fault}", num_prompts=16, commit_deadline_s=30.0)
    faults.data_puts += [fault] * HURT_PUTS[fault]
    assert len(make_shards(job)) == 2
    assert faults.data_puts == []
    checks.check_answers(job)
    names = dict.fromkeys(faults.names)
    last = {name.split("-")[1]: name for name in names}
    assert len(names) > len(last) == 2
    assert {file.path for file in shard_files(DeltaTable(job.completions_uri))} == set(last.values())


def test_slow_store_delays_and_changes_nothing(faults: Faults, store: Store) -> None:
    job = local_job(f"s3://{BUCKET}/slow", num_prompts=16, commit_deadline_s=1.0)
    faults.data_puts += [Fault.SLOW]
    make_shards(job)
    assert len(set(faults.names)) == 2
    checks.check_answers(job)


@pytest.mark.parametrize("puts", ["data_puts", "log_puts"])
def test_store_that_answers_later_than_the_deadline_ends_with_a_sentence(
    faults: Faults, store: Store, puts: str
) -> None:
    job = local_job(f"s3://{BUCKET}/late-{puts}", num_prompts=8, commit_deadline_s=1.0)
    plan(job)
    todo = tasks(job)
    getattr(faults, puts).extend([Fault.SLOW_REFUSE] * 100)
    with pytest.raises(UserError, match=r"\(deadlines.commit\)"):
        list(stream(job, todo))
    faults.clear()
    make_shards(job)
    checks.check_answers(job)


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
