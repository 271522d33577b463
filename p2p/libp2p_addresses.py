"""Which addresses of this machine others can dial."""

from typing import Final

import ifaddr

_ANY_ADDRESSES: Final = ("0.0.0.0", "::")  # noqa: S104 (compared, not bound)


def dialable(addresses: tuple[str, ...]) -> list[str]:
    """Listen addresses with 0.0.0.0 and :: spelled out as this machine's addresses."""
    found: list[str] = []
    for address in addresses:
        _, family, host, rest = address.split("/", 3)
        hosts = _own_addresses(is_ipv6=family == "ip6") if host in _ANY_ADDRESSES else [host]
        found += [f"/{family}/{own}/{rest}" for own in hosts]
    return found


def _own_addresses(*, is_ipv6: bool) -> list[str]:
    """Addresses of this machine, those that others can reach first, link-local ones left out."""
    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            address = ip.ip[0] if ip.is_IPv6 else ip.ip
            if ip.is_IPv6 == is_ipv6 and not str(address).startswith(("fe80", "169.254")):
                found.append(str(address))
    return sorted(found, key=is_loopback)


def is_loopback(host: str) -> bool:
    """Whether an IP address, as text, is this machine's own."""
    return host.startswith("127.") or host == "::1"
