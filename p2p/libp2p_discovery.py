"""Find nodes of the same run on the local network, over multicast DNS (zeroconf).

py-libp2p's own mDNS speaks on every interface and cannot say which run a node belongs to; this
announces `_paris-node._tcp` with peer id, run and addresses, only on the interfaces the node
listens on. What others announce is untrusted: it is a hint where to dial, checked by the handshake.
"""

import ipaddress
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from p2p.errors import DecodeError
from p2p.host_guards import split_address
from p2p.ids import PeerId, parse_peer_id

logger = logging.getLogger(__name__)

SERVICE: Final = "_paris-node._tcp.local."
MAX_ADDRESSES: Final = 8
"""Of one node; a machine rarely has more interfaces that others can reach."""
_MAX_TEXT: Final = 250
"""A TXT string holds 255 bytes, its key included."""
_LOOKUP_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a node says of itself on the LAN."""

    peer: PeerId
    run: str
    addresses: tuple[str, ...]
    """Multiaddrs that end in `/p2p/<peer>`."""

    def to_properties(self) -> dict[str, str]:
        """As TXT records; what does not fit is left out."""
        fitting = [address for address in self.addresses if len(address) <= _MAX_TEXT]
        return {
            "id": self.peer,
            "run": self.run,
            **{f"a{n}": address for n, address in enumerate(fitting[:MAX_ADDRESSES])},
        }


def read_announcement(properties: dict[bytes, bytes | None]) -> Announcement:
    """Check TXT records that anybody on the LAN may have sent.

    Raises:
        DecodeError: if they are not an announcement of ours.
    """
    try:
        texts = {
            key.decode("ascii"): (value or b"").decode("ascii") for key, value in properties.items()
        }
    except UnicodeDecodeError as error:
        raise DecodeError("LAN announcement: got other than ASCII") from error
    peer = parse_peer_id(texts.get("id"))
    addresses = [texts[key] for key in (f"a{n}" for n in range(MAX_ADDRESSES)) if key in texts]
    for address in addresses:
        transport, named = split_address(address)
        if named != peer:
            raise DecodeError(f"LAN announcement of {peer}: address names {named}")
        _check_transport(transport)
    return Announcement(peer, texts.get("run", ""), tuple(addresses))


def _check_transport(transport: str) -> None:
    parts = transport.split("/")
    try:
        _, family, host, protocol, port = parts
        is_ours = family in ("ip4", "ip6") and protocol == "tcp" and 0 < int(port) < 2**16
        ipaddress.ip_address(host)
    except ValueError as error:
        raise DecodeError(f"LAN announcement: got address {transport[:100]!r}") from error
    if not is_ours:
        raise DecodeError(f"LAN announcement: got address {transport[:100]!r}")


async def announce_and_browse(
    announcement: Announcement,
    found: trio.MemorySendChannel[str],
    counts: Counter[str],
) -> None:
    """Announce, and put the addresses of others on `found` (newest dropped when it is full).

    Runs until cancelled; says goodbye then. A network without multicast is logged, not an error.
    """
    listener = _Listener(announcement, found, counts)
    try:
        zeroconf = await trio.to_thread.run_sync(_start, announcement, listener)
    except (OSError, ZeroconfError) as error:
        logger.warning("no LAN discovery: %s", error)
        return
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_stop, zeroconf)


class _Listener:
    """Carries what zeroconf hears, in its own thread, to the trio side."""

    def __init__(
        self,
        own: Announcement,
        found: trio.MemorySendChannel[str],
        counts: Counter[str],
    ) -> None:
        self._own = own
        self._found = found
        self._counts = counts
        self._token = trio.lowlevel.current_trio_token()

    def on_change(
        self,
        zeroconf: Zeroconf,
        service_type: str,
        name: str,
        state_change: ServiceStateChange,
    ) -> None:
        """Called by zeroconf when a service appears, changes or goes."""
        if state_change is ServiceStateChange.Removed:
            return
        info = zeroconf.get_service_info(service_type, name, timeout=_LOOKUP_MS)
        if info is None:
            return
        try:
            other = read_announcement(info.properties)
        except DecodeError:
            self._counts["discovered_malformed"] += 1
            return
        if other.peer != self._own.peer and other.run == self._own.run:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._deliver, other.addresses)

    def _deliver(self, addresses: Sequence[str]) -> None:
        for address in addresses:
            try:
                self._found.send_nowait(address)
            except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                self._counts["discovered_dropped"] += 1


def _start(announcement: Announcement, listener: _Listener) -> Zeroconf:
    interfaces = _interfaces_of(announcement.addresses)
    if not interfaces:
        raise OSError("the node listens on no IPv4 address")
    zeroconf = Zeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
    try:
        zeroconf.register_service(_service_of(announcement))
        ServiceBrowser(zeroconf, SERVICE, handlers=[listener.on_change])
    except (OSError, ZeroconfError):
        zeroconf.close()
        raise
    return zeroconf


def _stop(zeroconf: Zeroconf) -> None:
    zeroconf.unregister_all_services()
    zeroconf.close()


def _service_of(announcement: Announcement) -> ServiceInfo:
    hosts = [address.split("/")[2] for address in announcement.addresses]
    port = int(announcement.addresses[0].split("/")[4])
    return ServiceInfo(
        SERVICE,
        f"{announcement.peer}.{SERVICE}",
        port=port,
        parsed_addresses=hosts,
        properties=announcement.to_properties(),
        server=f"{announcement.peer}.local.",
    )


def _interfaces_of(addresses: Sequence[str]) -> list[str]:
    """The IPv4 addresses to speak on: those we listen on, so loopback stays on loopback."""
    return sorted({a.split("/")[2] for a in addresses if a.startswith("/ip4/")})
