"""Serve's HTTP proxy on a cluster: where it listens is settled when Serve starts there, whoever starts it.

A run starts Serve without one, and Serve ignores what a later command asks for: nobody would ever answer there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.errors import UserError

LOCAL = ("127.0.0.1", "localhost")


@dataclass(frozen=True, slots=True)
class Proxy:
    """Serve as it runs: ``Proxy(True, "127.0.0.1", 8000, ("teacher-small-1f2e3d",))``."""

    is_there: bool
    host: str
    port: int
    applications: Sequence[str]


def read_proxy() -> Proxy:
    """Of the cluster that this process is connected to, on which Serve runs."""
    from ray.serve.config import ProxyLocation
    from ray.serve.context import _get_global_client  # `serve.status` tells of healthy proxies, not of wanted ones

    client = _get_global_client()
    details = client.get_serve_details()
    return Proxy(
        is_there=details["proxy_location"] != ProxyLocation.Disabled,
        host=client.http_config.host,
        port=client.http_config.port,
        applications=sorted(details["applications"]),
    )


def check_proxy(proxy: Proxy, host: str, port: int) -> None:
    """Hold the proxy that runs against what is asked for.

    Raises:
        UserError: it is not there, or listens elsewhere; says who uses Serve, and the fix.
    """
    is_same_host = proxy.host == host or (proxy.host in LOCAL and host in LOCAL)
    if proxy.is_there and is_same_host and proxy.port == port:
        return
    users = f"of {', '.join(proxy.applications)} " if proxy.applications else ""
    again = f"once no run needs the Serve {users}on this cluster, end it with `serve shutdown`, and give this again"
    if not proxy.is_there:
        raise UserError(
            "Serve runs on this cluster without an HTTP proxy, as a run has started it, and cannot be given one while "
            f"it runs: nobody would answer at {host}:{port}; {again}"
        )
    if is_same_host:
        again = f"give --port {proxy.port}, or, {again}"
    raise UserError(
        f"Serve's HTTP proxy on this cluster listens at {proxy.host}:{proxy.port}, not at {host}:{port}, and cannot be "
        f"moved while it runs; {again}"
    )
