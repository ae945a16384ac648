"""Who may ask over HTTP: the Host that a request names, and the page that it comes from.

A browser lets a page of any origin send simple requests to this machine, and lets a page whose name was made to point
here (DNS rebinding) read the answers as well. Such a request names the page's own host, or its origin. Other clients
send no such headers, and are taken.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.datastructures import Headers

from genai_ray.catalog import ServeProfile

__all__ = ["explain_refusal"]

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@,\s]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_DOTLESS = re.compile(r"[a-z][a-z0-9_-]*")
_ORIGIN = re.compile(r"(https?)://([^/@\s]+)", re.IGNORECASE)
_PORTS = {"http": ":80", "https": ":443"}
_READING = ("GET", "HEAD", "OPTIONS")
_OWN_SITES = ("same-origin", "none")
"""Of ``Sec-Fetch-Site``: the page of this endpoint, or no page at all, such as an address that a person typed."""


def explain_refusal(method: str, headers: Headers, profile: ServeProfile) -> str:
    """Say why a request is not taken.

    Args:
        method: Its method.
        headers: Its headers.
        profile: Options: where the endpoint listens, and which hosts and origins are allowed.

    Returns:
        A sentence; empty if it is taken.
    """
    for host in headers.getlist("host"):
        if host and not _is_allowed(host, profile):
            return f"Host {host[:100]!r}; allowed: {_describe(profile)}. Allow another one with --allowed-host NAME."
    if method in _READING:
        return ""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none").lower()
    is_named = "*" in profile.cors_origins or origin in profile.cors_origins
    is_own = site in _OWN_SITES if origin is None else _is_same(origin, headers.get("host", ""))
    if is_own or is_named:
        return ""
    page = f"a page of another site ({site})" if origin is None else f"a page of origin {origin[:100]!r}"
    return f"{page} for {method}; allowed: this endpoint's own page. Allow another one with --cors-origin ORIGIN."


def _is_allowed(host: str, profile: ServeProfile) -> bool:
    found = _HOST.fullmatch(host)
    if "*" in profile.allowed_hosts or found is None:
        return found is not None
    name = _plain(found[1])
    for allowed in map(_plain, profile.allowed_hosts):
        if name == allowed or (allowed.startswith(".") and name.endswith(allowed) and name != allowed):
            return True
    address = _address(name)
    if name in ("localhost", _plain(profile.host)) or (address is not None and address.is_loopback):
        return True
    # No page of a stranger has an address for its host, nor a name without a dot: neither is looked up in his DNS.
    return not _listens_on_loopback(profile) and (address is not None or _DOTLESS.fullmatch(name) is not None)


def _describe(profile: ServeProfile) -> str:
    network = () if _listens_on_loopback(profile) else ("addresses", "names without a dot")
    return ", ".join(dict.fromkeys(("localhost", "127.0.0.1", "[::1]", profile.host, *network, *profile.allowed_hosts)))


def _listens_on_loopback(profile: ServeProfile) -> bool:
    address = _address(_plain(profile.host))
    return profile.host == "localhost" or (address is not None and address.is_loopback)


def _is_same(origin: str, host: str) -> bool:
    """Tell whether an origin is this endpoint's own; a proxy in front of it may speak TLS."""
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return False
    port = _PORTS[found[1].lower()]
    return found[2].lower().removesuffix(port) == host.lower().removesuffix(port)


def _plain(name: str) -> str:
    return name.lower().strip("[]").removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
