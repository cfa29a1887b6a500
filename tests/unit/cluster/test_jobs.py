"""Which job is meant, what is refused, and what is said when a cluster does not answer."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from ray.job_submission import JobDetails

from cluster.cli import run_command
from cluster.jobs import Metadata, find_job, message_of, refuse_second, resume_job, stop_job, stop_wait_s
from configs.errors import UserError

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("sigterm_handler")]


def make_job(job_id: str, status: str, run: str = "small", run_dir: str = "/mnt/small", **facts: Any) -> JobDetails:
    metadata = Metadata(run, "run", "configs/recipes/quickstart.yaml", run_dir).to_ray()
    return JobDetails(
        type="SUBMISSION", submission_id=job_id, status=status, entrypoint="python", metadata=metadata, **facts
    )


@pytest.fixture
def silent() -> Iterator[str]:
    """Address of something that listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_metadata_is_what_ray_gives_back() -> None:
    assert Metadata.of(make_job("a", "RUNNING")) == Metadata(
        "small", "run", "configs/recipes/quickstart.yaml", "/mnt/small"
    )
    assert Metadata.of(JobDetails(type="SUBMISSION", status="RUNNING", entrypoint="python")) is None


def test_job_is_found_by_its_id_and_by_its_run_the_latest_first() -> None:
    jobs = [make_job("a", "FAILED"), make_job("b", "STOPPED"), make_job("c", "SUCCEEDED", run="other")]
    assert find_job(jobs, "a").submission_id == "a"
    assert find_job(jobs, "small").submission_id == "b"


def test_job_under_way_is_meant_before_later_ones_that_have_ended() -> None:
    jobs = [make_job("a", "RUNNING"), make_job("b", "FAILED")]
    assert find_job(jobs, "small").submission_id == "a"


def test_name_of_two_jobs_under_way_is_refused_with_their_ids() -> None:
    jobs = [make_job("a", "RUNNING"), make_job("b", "PENDING", run_dir="/mnt/other")]
    with pytest.raises(UserError, match=r"2 jobs .* small are under way; say which by id: a, b"):
        find_job(jobs, "small")


def test_unknown_job_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no job or run lost on this cluster; the latest jobs are a"):
        find_job([make_job("a", "RUNNING")], "lost")
    with pytest.raises(UserError, match="it has had no job of stillhouse"):
        find_job([], "lost")


def test_second_job_in_a_run_directory_is_refused_while_the_first_is_under_way() -> None:
    with pytest.raises(UserError, match=r"job a \(run\) is under way in /mnt/small"):
        refuse_second([make_job("a", "PENDING")], "/mnt/small")
    refuse_second([make_job("a", "PENDING")], "/mnt/other")
    refuse_second([make_job("a", "FAILED")], "/mnt/small")


def test_stop_of_a_job_that_has_ended_and_resume_of_one_that_has_not_are_refused() -> None:
    client: Any = None  # nothing is asked of the cluster
    with pytest.raises(UserError, match="job a is not under way: it ended as FAILED"):
        stop_job(client, make_job("a", "FAILED"))
    with pytest.raises(UserError, match=r"job a .* is under way"):
        resume_job(client, [make_job("a", "RUNNING")], make_job("a", "RUNNING"))


def test_resume_without_the_recipe_in_this_checkout_is_refused() -> None:
    job = make_job("a", "FAILED")
    job.metadata = Metadata("small", "run", "configs/recipes/gone.yaml", "/mnt/small").to_ray()
    with pytest.raises(UserError, match=r"there is no such recipe in"):
        resume_job(None, [job], job)  # type: ignore[arg-type]


def test_message_of_a_failed_job_is_its_own_sentence() -> None:
    message = "Job entrypoint command failed with exit code 2, last available logs:\nplan\nerror: run_dir: no\n\n"
    assert message_of(make_job("a", "FAILED", message=message)) == "run_dir: no"
    assert message_of(make_job("a", "FAILED", message="Job supervisor actor died")) == "Job supervisor actor died"


def test_time_to_stop_is_the_jobs_own() -> None:
    assert stop_wait_s(make_job("a", "RUNNING", runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "45"}})) == 45
    assert stop_wait_s(make_job("a", "RUNNING")) == 3


@pytest.mark.parametrize("arguments", [["list"], ["status", "small"], ["stop", "small"], ["resume", "small"]])
def test_cluster_that_is_not_there_is_told(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, and nobody listens
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        assert run_command(["jobs", *arguments, "--address", address]) == 2
    assert f"no Ray cluster answers at {address}" in capsys.readouterr().err


def test_cluster_that_does_not_answer_is_given_up(
    silent: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr("cluster.job_client.REQUEST_S", 0.2)
    assert run_command(["jobs", "list", "--address", silent]) == 2
    assert f"no Ray cluster answers at {silent}" in capsys.readouterr().err
