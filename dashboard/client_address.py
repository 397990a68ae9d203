"""The IP address that a request came from, read in the same way for the trail, the limits and the proxies."""

from ipaddress import IPv4Address, IPv6Address, ip_address

from django.http import HttpRequest

type Address = IPv4Address | IPv6Address


def client_address(request: HttpRequest) -> Address | None:
    """Return the caller's address, as ClientAddressMiddleware has left it in REMOTE_ADDR.

    It is None where the web server gives no IP address, for instance on a Unix socket.
    """
    return parse(request.META.get("REMOTE_ADDR", ""))


def parse(text: str) -> Address | None:
    """Return the address in a text such as "192.0.2.1" or "fe80::1%eth0", without its zone; None if it holds none."""
    try:
        return ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
