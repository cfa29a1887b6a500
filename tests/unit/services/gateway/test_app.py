"""The HTTP side as OpenAI's own client sees it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from configs.gateway import CapsConfig, GatewayConfig, KeyLimitsConfig, RegionsConfig
from configs.watermark import WatermarkKind, WatermarkScheme
from services.gateway.admission import KEYS_FILE, LEDGER_FILE, Admission
from services.gateway.app import GatewaySpec, build_app
from services.gateway.audit import LOG_FILE
from services.gateway.keys import KeyFile
from services.gateway.ledger import Ledger
from tests.unit.services.gateway.gateway import (
    MODEL,
    NOW,
    TERMS,
    Clock,
    EchoAnswerer,
    InProcess,
    add_key,
    make_spec,
    served,
)

pytestmark = pytest.mark.unit

ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 8}


def client(address: str, secret: str, **headers: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=secret, max_retries=0, default_headers=headers)


def settled(directory: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (directory / LOG_FILE).read_text().splitlines()]
    return [each for each in entries if each["event"] == "settled"]


def reserved_tokens(directory: Path) -> int:
    [key], ledger = KeyFile(directory / KEYS_FILE).all(), Ledger(directory / LEDGER_FILE)
    try:
        return ledger.usage(key.key_id).reserved
    finally:
        ledger.close()


def wait_until(is_done: Callable[[], bool], deadline_s: float = 10.0) -> None:
    give_up_at = time.monotonic() + deadline_s
    while not is_done():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "gateway"


def test_chat_completion_comes_back_and_is_charged_with_what_it_used(directory: Path) -> None:
    secret = add_key(directory)
    with served(directory, GatewayConfig()) as (address, _, _):
        answer = client(address, secret).chat.completions.create(**ASK, n=2)
    assert [choice.message.content for choice in answer.choices] == ["one two three"] * 2
    [entry] = settled(directory)
    assert (entry["tokens"], entry["outcome"]) == (3 + 2 * 3, "completed")


def test_stream_comes_piece_by_piece_and_hides_the_usage_it_is_counted_by(directory: Path) -> None:
    secret = add_key(directory)
    with served(directory, GatewayConfig()) as (address, _, _):
        chunks = list(client(address, secret).chat.completions.create(**ASK, stream=True))
        counted = list(
            client(address, secret).chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
        )
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["one", "two", "three"]
    assert all(chunk.usage is None for chunk in chunks)
    assert counted[-1].usage is not None
    assert counted[-1].usage.total_tokens == 6
    assert [(each["tokens"], each["outcome"]) for each in settled(directory)] == [(6, "completed")] * 2


def test_stream_that_a_client_leaves_is_charged_with_what_was_sent_and_stops_the_teacher(directory: Path) -> None:
    secret = add_key(directory)
    ask = {**ASK, "messages": [{"role": "user", "content": "one hang two"}]}
    with served(directory, GatewayConfig()) as (address, teacher, _):
        stream = client(address, secret).chat.completions.create(**ask, stream=True)
        assert [next(stream).choices[0].delta.content for _ in range(2)] == ["one", "hang"]
        stream.close()
        wait_until(lambda: bool(settled(directory)))
    [entry] = settled(directory)
    assert (entry["tokens"], entry["outcome"]) == (3 + 2, "cancelled")
    assert teacher.closed == 1


def test_plain_completion_and_models_are_served(directory: Path) -> None:
    secret, other = add_key(directory), add_key(directory, "bob", models=("another",))
    with served(directory, GatewayConfig()) as (address, _, _):
        asker = client(address, secret)
        answer = asker.completions.create(model=MODEL, prompt="a b c", max_tokens=2)
        pieces = list(asker.completions.create(model=MODEL, prompt="a b c", max_tokens=2, stream=True))
        assert [each.id for each in asker.models.list()] == [MODEL]
        assert asker.models.retrieve(MODEL).id == MODEL
        assert list(client(address, other).models.list()) == []
        with pytest.raises(openai.NotFoundError, match="may not use"):
            client(address, other).chat.completions.create(**ASK)
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            asker.chat.completions.create(**{**ASK, "model": "nobody"})
    assert answer.choices[0].text == "a b"
    assert [each.choices[0].text for each in pieces] == ["a", "b"]


def test_key_that_is_wrong_expired_or_revoked_is_refused_at_once(directory: Path) -> None:
    expired = add_key(directory, "old", expires="2026-11-24T11:59:59+00:00")
    secret = add_key(directory)
    with served(directory, GatewayConfig()) as (address, teacher, _):
        client(address, secret).chat.completions.create(**ASK)
        KeyFile(directory / "keys.json").revoke("ada", NOW)
        for wrong, state in ((secret, "revoked"), (expired, "expired"), (secret + "x", "not known")):
            with pytest.raises(openai.AuthenticationError, match=state):
                client(address, wrong).chat.completions.create(**ASK)
        assert httpx.post(f"{address}/v1/chat/completions", json=ASK).status_code == 401
    assert len(teacher.bodies) == 1


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 3}, "n"),
        ({"max_tokens": 99}, "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": 99}, "max_completion_tokens"),
        ({"logprobs": True, "top_logprobs": 4}, "top_logprobs"),
        ({"n": "2"}, "n"),
        ({"temperature": 3.0}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ],
)
def test_parameter_above_its_cap_or_wrong_is_a_400_that_names_it(
    directory: Path, changes: dict[str, Any], param: str
) -> None:
    secret = add_key(directory)
    caps = CapsConfig(n=2, max_tokens=16, top_logprobs=3)
    with served(directory, GatewayConfig(caps=caps)) as (address, teacher, _):
        asker = client(address, secret)
        with pytest.raises(openai.BadRequestError) as caught:
            asker.chat.completions.create(**{**ASK, **changes})
    assert str(caught.value.param).startswith(param)
    assert teacher.bodies == []


@pytest.mark.parametrize("logprobs", [0, 1])
def test_logprobs_of_a_plain_completion_are_refused_where_none_are_given_out(directory: Path, logprobs: int) -> None:
    secret = add_key(directory)
    with served(directory, GatewayConfig(caps=CapsConfig(top_logprobs=0))) as (address, teacher, _):
        asker = client(address, secret)
        with pytest.raises(openai.BadRequestError, match="not given out") as caught:
            asker.completions.create(model=MODEL, prompt="a b c", max_tokens=2, logprobs=logprobs)
        asker.completions.create(model=MODEL, prompt="a b c", max_tokens=2)
    assert caught.value.param == "logprobs"
    assert len(teacher.bodies) == 1


@pytest.mark.parametrize("place", ["name", "model", "content"])
@pytest.mark.parametrize("half", ["\\ud800", "\ud800"])
def test_text_that_is_no_character_is_a_400_and_reserves_nothing(directory: Path, place: str, half: str) -> None:
    secret = add_key(directory)
    texts = {"name": "x", "model": MODEL, "content": "hi"}
    texts[place] += half
    messages = f'[{{"role": "user", "content": "{texts["content"]}"}}]'
    body = f'{{"{texts["name"]}": 1, "model": "{texts["model"]}", "messages": {messages}}}'
    with served(directory, GatewayConfig(log_prompts=True)) as (address, teacher, _):
        answer = httpx.post(
            f"{address}/v1/chat/completions",
            content=body.encode(errors="surrogatepass"),
            headers={"Authorization": f"Bearer {secret}"},
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert "UTF-8 cannot hold" in answer.json()["error"]["message"]
    assert teacher.bodies == []
    assert reserved_tokens(directory) == 0


class SlowToReserve(InProcess):
    """Waits to be told before it reserves."""

    def __init__(self, admission: Admission) -> None:
        super().__init__(admission)
        self.is_asked, self.may_go_on = asyncio.Event(), asyncio.Event()

    async def reserve(self, *arguments: Any) -> Any:
        self.is_asked.set()
        await self.may_go_on.wait()
        return await self.__getattr__("reserve")(*arguments)


def test_client_who_leaves_while_tokens_are_reserved_gets_them_back(directory: Path) -> None:
    secret, config = add_key(directory), GatewayConfig()
    admission, teacher = Admission(make_spec(directory, config)), EchoAnswerer()

    async def leave() -> None:
        doorkeeper = SlowToReserve(admission)
        app = build_app(GatewaySpec(config, MODEL, {}, 30.0), doorkeeper, teacher)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as asker:
            headers = {"Authorization": f"Bearer {secret}"}
            asking = asyncio.create_task(asker.post("/v1/chat/completions", json=ASK, headers=headers))
            await asyncio.wait_for(doorkeeper.is_asked.wait(), 10)
            asking.cancel()  # as Serve does when a connection ends
            with pytest.raises(asyncio.CancelledError):
                await asking
            doorkeeper.may_go_on.set()
            async with asyncio.timeout(10):
                while not settled(directory):
                    await asyncio.sleep(0.01)

    asyncio.run(leave())
    assert [(each["tokens"], each["outcome"]) for each in settled(directory)] == [(0, "cancelled")]
    assert reserved_tokens(directory) == 0
    assert teacher.bodies == []
    admission.close()


def test_requests_to_a_marking_teacher_have_seeds_of_their_own(directory: Path) -> None:
    secret = add_key(directory)
    with served(directory, GatewayConfig(), watermark=WatermarkScheme(channels=2)) as (address, teacher, _):
        for given in ({}, {"seed": None}, {}, {"seed": 7}):
            client(address, secret).chat.completions.create(**ASK, n=2, **given)
    *drawn, kept = [each["seed"] for each in teacher.bodies]
    assert len(set(drawn)) == 3
    assert kept == 7


def test_more_samples_than_a_teacher_can_mark_apart_are_refused(directory: Path) -> None:
    secret = add_key(directory)
    marks = {kind: WatermarkScheme(kind=kind, channels=2) for kind in WatermarkKind}
    with (
        served(directory, GatewayConfig(), watermark=marks[WatermarkKind.GUMBEL]) as (address, teacher, _),
        pytest.raises(openai.BadRequestError, match=r"n may be at most 2 .*watermark\.channels") as caught,
    ):
        client(address, secret).chat.completions.create(**ASK, n=3)
    assert caught.value.param == "n"
    assert teacher.bodies == []
    with served(directory, GatewayConfig(), watermark=marks[WatermarkKind.GREEN_LIST]) as (address, _, _):
        assert len(client(address, secret).chat.completions.create(**ASK, n=3).choices) == 3


def test_parameters_that_are_not_for_clients_are_stripped_and_named(directory: Path) -> None:
    secret = add_key(directory)
    extra = {"logit_bias": {"1": 5}, "prompt_logprobs": 3, "echo": True, "chat_template": "{{ x }}", "tools": []}
    with served(directory, GatewayConfig()) as (address, teacher, _):
        raw = client(address, secret).chat.completions.with_raw_response.create(**ASK, extra_body=extra)
        assert raw.headers["x-stripped-parameters"] == "chat_template,echo,logit_bias,prompt_logprobs,tools"
    assert teacher.bodies == [ASK]


def test_body_that_is_too_large_or_no_json_is_refused(directory: Path) -> None:
    secret = add_key(directory)
    with served(directory, GatewayConfig(caps=CapsConfig(body_kib=1))) as (address, _, _):
        with pytest.raises(openai.APIStatusError) as caught:
            client(address, secret).chat.completions.create(
                **{**ASK, "messages": [{"role": "user", "content": "x" * 2000}]}
            )
        assert caught.value.status_code == 413
        headers = {"Authorization": f"Bearer {secret}"}
        broken = httpx.post(f"{address}/v1/chat/completions", content=b"{", headers=headers)
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
        unknown = httpx.post(f"{address}/v1/embeddings", json={}, headers=headers)
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "invalid_request_error")


def test_rates_and_quota_are_429_and_say_how_long_to_wait(directory: Path) -> None:
    clock = Clock()
    config = GatewayConfig(key_limits=KeyLimitsConfig(requests_per_minute=2, tokens_per_minute=1000))
    secret, poor = add_key(directory), add_key(directory, "poor", lifetime_tokens=12, requests_per_minute=50)
    with served(directory, config, clock=clock) as (address, _, _):
        for _ in range(2):
            client(address, secret).chat.completions.create(**ASK)
        with pytest.raises(openai.RateLimitError) as caught:
            client(address, secret).chat.completions.create(**ASK)
        assert caught.value.response.headers["retry-after"] == "60"
        clock.seconds = 60.0
        client(address, secret).chat.completions.create(**ASK)
        client(address, poor).chat.completions.create(**ASK)  # may use 11, uses 6
        with pytest.raises(openai.RateLimitError) as caught:
            client(address, poor).chat.completions.create(**ASK)
        assert caught.value.code == "insufficient_quota"
        assert caught.value.response.headers["x-should-retry"] == "false"


def test_terms_are_read_and_accepted_before_anything_is_asked(directory: Path) -> None:
    secret = add_key(directory)
    with served(directory, GatewayConfig(), terms=TERMS) as (address, _, _):
        with pytest.raises(openai.PermissionDeniedError, match="POST /terms/accept"):
            client(address, secret).chat.completions.create(**ASK)
        terms = httpx.get(f"{address}/terms")
        assert terms.text == TERMS
        headers = {"Authorization": f"Bearer {secret}"}
        accept = {"sha256": terms.headers["x-terms-sha256"]}
        assert httpx.post(f"{address}/terms/accept", json={"sha256": "0" * 64}, headers=headers).status_code == 400
        assert httpx.post(f"{address}/terms/accept", json=accept).status_code == 401
        assert httpx.post(f"{address}/terms/accept", json=accept, headers=headers).status_code == 200
        client(address, secret).chat.completions.create(**ASK)
    with served(directory, GatewayConfig(), terms=TERMS + " Always.") as (address, _, _):
        asker = client(address, secret)
        with pytest.raises(openai.PermissionDeniedError):
            asker.chat.completions.create(**ASK)


def test_region_counts_only_from_a_trusted_proxy(directory: Path) -> None:
    secret = add_key(directory)
    regions = RegionsConfig(header="X-Country", deny=("KP",))
    trusting = GatewayConfig(regions=regions, trusted_proxies=("127.0.0.1",))
    with served(directory, trusting) as (address, _, _):
        with pytest.raises(openai.PermissionDeniedError, match="not offered"):
            client(address, secret, **{"X-Country": "KP"}).chat.completions.create(**ASK)
        client(address, secret, **{"X-Country": "DE"}).chat.completions.create(**ASK)
    with served(directory, trusting.model_copy(update={"trusted_proxies": ("10.0.0.0/8",)})) as (address, _, _):
        client(address, secret, **{"X-Country": "KP"}).chat.completions.create(**ASK)


def test_faults_of_the_teacher_are_told_and_cost_nothing(directory: Path) -> None:
    secret = add_key(directory)
    with served(directory, GatewayConfig(), deadline_s=0.2) as (address, _, _):
        for text, error in (("die", openai.InternalServerError), ("long", openai.BadRequestError)):
            with pytest.raises(error) as caught:
                client(address, secret).chat.completions.create(
                    **{**ASK, "messages": [{"role": "user", "content": text}]}
                )
            assert caught.value.response.json()["error"]["message"]
        assert [(each["tokens"], each["outcome"]) for each in settled(directory)] == [(0, "teacher_fault")]
        ask = {**ASK, "messages": [{"role": "user", "content": "hang on"}]}
        with pytest.raises(openai.APIError, match="did not answer in time"):
            list(client(address, secret).chat.completions.create(**ask, stream=True))


def test_fifty_at_once_never_overshoot_the_quota(directory: Path) -> None:
    """Each may use 11 tokens and uses 6: a quota of 60 lets in at most ten, and at least five."""
    secret = add_key(directory, lifetime_tokens=60, requests_per_minute=1000)
    outcomes: list[int] = []
    with served(directory, GatewayConfig()) as (address, _, _):

        def ask() -> None:
            response = httpx.post(
                f"{address}/v1/chat/completions", json=ASK, headers={"Authorization": f"Bearer {secret}"}, timeout=30
            )
            outcomes.append(response.status_code)

        threads = [threading.Thread(target=ask) for _ in range(50)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    used = sum(each["tokens"] for each in settled(directory))
    assert used == 6 * outcomes.count(200) <= 60
    assert outcomes.count(200) >= 5
    assert outcomes.count(200) + outcomes.count(429) == 50
