"""Whether people would be answered by the Serve that is on a cluster."""

import pytest

from cluster.http_proxy import Proxy, check_proxy
from configs.errors import UserError

pytestmark = pytest.mark.unit

RUN = "teacher-small-1f2e3d"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_proxy_that_listens_where_it_is_asked_for_is_taken(host: str) -> None:
    check_proxy(Proxy(True, host, 8000, ()), "127.0.0.1", 8000)


def test_serve_that_a_run_has_started_without_proxy_is_refused_with_who_uses_it() -> None:
    sentence = (
        r"^Serve runs on this cluster without an HTTP proxy.* nobody would answer at 127.0.0.1:8000; once no run needs "
        r"the Serve of teacher-small-1f2e3d on this cluster, end it with `serve shutdown`, and give this again$"
    )
    with pytest.raises(UserError, match=sentence):
        check_proxy(Proxy(False, "127.0.0.1", 8000, (RUN,)), "127.0.0.1", 8000)
    with pytest.raises(UserError, match=r"once no run needs the Serve on this cluster"):
        check_proxy(Proxy(False, "127.0.0.1", 8000, ()), "127.0.0.1", 8000)


def test_proxy_at_another_port_is_refused_with_that_port() -> None:
    with pytest.raises(UserError, match=r"listens at 127.0.0.1:8000, not at 127.0.0.1:8100, .*; give --port 8000, or"):
        check_proxy(Proxy(True, "127.0.0.1", 8000, ()), "127.0.0.1", 8100)


def test_proxy_that_others_reach_is_no_loopback_one() -> None:
    with pytest.raises(UserError, match=r"listens at 0.0.0.0:8000, not at 127.0.0.1:8000, .*; once no run needs"):
        check_proxy(Proxy(True, "0.0.0.0", 8000, ()), "127.0.0.1", 8000)
