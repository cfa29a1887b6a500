"""Where a request comes from. A header counts only when a proxy that the recipe trusts has sent it on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from configs.gateway import RegionsConfig, Stance

UNKNOWN = ("", "XX", "T1")  # what proxies write of an address without a country, and of Tor


@dataclass(frozen=True, slots=True)
class Origin:
    """A client's address, and its country where a trusted proxy has told one."""

    address: str
    country: str | None = None


def find_origin(peer: str, headers: Mapping[str, str], proxies: Sequence[str], country_header: str | None) -> Origin:
    """Who asks, when ``peer`` is the address that the connection comes from. ``headers`` have lower-case names.

    Of X-Forwarded-For, to which each proxy adds the address it was asked from, the last one counts that is no trusted
    proxy itself: whatever stands before it the client may have written.
    """
    if not is_trusted(peer, proxies):
        return Origin(peer)
    hops = [hop.strip() for hop in headers.get("x-forwarded-for", "").split(",") if hop.strip()]
    address = next((hop for hop in reversed(hops) if not is_trusted(hop, proxies)), hops[0] if hops else peer)
    country = headers.get(country_header.lower(), "").rpartition(",")[2].strip().upper() if country_header else ""
    return Origin(address, None if country in UNKNOWN else country)


def is_trusted(address: str, proxies: Sequence[str]) -> bool:
    """Whether it is one of the recipe's proxies. What is no address is not."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in ip_network(each) for each in proxies)


def may_ask(country: str | None, regions: RegionsConfig) -> bool:
    """What the recipe's lists say of a country; None is one that is not known."""
    if country in regions.deny:
        return False
    return country in regions.allow or regions.others is Stance.ALLOW
