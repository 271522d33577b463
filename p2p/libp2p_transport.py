"""TCP of py-libp2p with the limits it lacks: exclusive listeners, and a gate before the handshake.

Listeners are bound before the host starts, exclusively (py-libp2p shares ports), so a port in use
is an error with a name. `Gate` bounds connections: half open, in all, per address, per second.
"""
# mypy: disable-error-code="misc"

import errno
import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import trio
from libp2p.io.trio import TrioTCPStream
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from p2p.errors import ListenError, PortInUseError, TransportError
from p2p.host_guards import Budgets
from p2p.libp2p_settings import HostLimits

_BACKLOG = 128


@dataclass(slots=True, eq=False)
class _Slot:
    """One inbound connection's place in the gate."""

    network: str
    scope: trio.CancelScope
    is_pending: bool = True


@dataclass(slots=True)
class Gate:
    """Decides which inbound sockets may try to become connections. Synchronous: no races."""

    host_limits: HostLimits
    counts: Counter[str]
    _slots: dict[_Slot, None] = field(default_factory=dict)
    _rate: Budgets = field(init=False)

    def __post_init__(self) -> None:
        per_s = self.host_limits.max_new_per_ip_per_s
        self._rate = Budgets(rate_per_s=per_s, burst=per_s, max_keys=4096)

    def enter(self, ip: str, scope: trio.CancelScope, now: float) -> _Slot | None:
        """Admit a socket from `ip` at `now` (monotonic seconds), or None.

        When too many are half open, the oldest of the address with the most is cancelled: a
        newcomer that finishes its handshake always gets through.
        """
        network, is_limited = self._network_of(ip)
        same = [slot for slot in self._slots if slot.network == network]
        established = sum(not slot.is_pending for slot in self._slots)
        refusal = None
        if is_limited and not self._rate.take(network, now):
            refusal = "rate"
        elif is_limited and len(same) >= self.host_limits.max_per_ip:
            refusal = "per_ip"
        elif established >= self.host_limits.max_inbound:
            refusal = "full"
        if refusal:
            self.counts[f"inbound_refused_{refusal}"] += 1
            return None
        pending = [slot for slot in self._slots if slot.is_pending]
        if len(pending) >= self.host_limits.max_pending:
            most, _ = Counter(slot.network for slot in pending).most_common(1)[0]
            oldest = next(slot for slot in pending if slot.network == most)
            self.counts["inbound_evicted"] += 1
            self.leave(oldest)
            oldest.scope.cancel()
        slot = _Slot(network, scope)
        self._slots[slot] = None
        return slot

    def leave(self, slot: _Slot) -> None:
        """Give a slot back; idempotent."""
        self._slots.pop(slot, None)

    def _network_of(self, ip: str) -> tuple[str, bool]:
        """The key an address is counted under (an IPv6 host owns its /64), and if it is limited."""
        try:
            address = ipaddress.ip_address(ip.partition("%")[0])
        except ValueError:
            return ip, True
        if address.is_loopback and self.host_limits.is_loopback_exempt:
            return str(address), False
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address, 64), strict=False)), True
        return str(address), True


class GuardedTCP(TCP):
    """TCP whose listeners are bound ahead of `Swarm.listen`, and gated."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate
        self._bound: dict[str, trio.SocketListener] = {}
        self._sockets: WeakSet[trio.socket.SocketType] = WeakSet()

    async def bind(self, address: str) -> str:
        """Bind a listener.

        Args:
            address: `/ip4/<ip>/tcp/<port>` or `/ip6/...`; port 0 lets the system choose.

        Returns:
            The same address with its real port, to be passed to `Swarm.listen`.

        Raises:
            ListenError: if the address cannot be bound (`PortInUseError` if the port is taken).
        """
        _, family, host, protocol, port_text = (address.split("/") + [""] * 5)[:5]
        if protocol != "tcp" or not port_text.isdecimal() or address.count("/") != 4:
            raise TransportError(f"cannot listen on {address!r}: expected '/ip4/<ip>/tcp/<port>'")
        port = int(port_text)
        try:
            (listener,) = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(address) from error
            raise ListenError(address, error.strerror or str(error)) from error
        port = listener.socket.getsockname()[1]
        bound = f"/{family}/{host}/tcp/{port}"
        self._bound[bound] = listener
        return bound

    def take_bound(self, address: str) -> trio.SocketListener:
        """The listener bound to an address."""
        return self._bound.pop(address)

    async def dial(self, maddr: Multiaddr) -> Any:  # noqa: ANN401, D102
        raw = await super().dial(maddr)
        self._sockets.add(raw.stream.stream.socket)
        return raw

    def close_all(self) -> None:
        """Close every socket that is still open: py-libp2p leaves those it dialled."""
        for listener in self._bound.values():
            listener.socket.close()
        for socket in self._sockets:
            socket.close()

    def create_listener(self, handler_function: Callable[[Any], Awaitable[None]]) -> Any:  # noqa: ANN401, D102
        return _GatedListener(self, handler_function)


class _GatedListener:
    """Serves one bound socket in the swarm's nursery."""

    def __init__(self, transport: GuardedTCP, handler: Callable[[Any], Awaitable[None]]) -> None:
        self._transport = transport
        self._handler = handler
        self._scope = trio.CancelScope()
        self._addresses: tuple[Multiaddr, ...] = ()
        self.background_nursery: trio.Nursery | None = None  # set by Swarm.listen

    async def listen(self, maddr: Multiaddr) -> None:
        listener = self._transport.take_bound(str(maddr))
        self._addresses = (maddr,)
        assert self.background_nursery is not None  # noqa: S101 (Swarm.listen sets it)
        await self.background_nursery.start(self._serve, listener)

    async def _serve(
        self,
        listener: trio.SocketListener,
        *,
        task_status: Any = trio.TASK_STATUS_IGNORED,  # noqa: ANN401 (trio exports no type)
    ) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_listeners, self._accept, [listener])
                task_status.started()

    async def _accept(self, socket: trio.SocketStream) -> None:
        stream = TrioTCPStream(socket)
        remote = stream.get_remote_address() or peer_name(socket)
        gate = self._transport.gate
        with socket.socket, trio.CancelScope() as scope:
            slot = gate.enter(remote[0], scope, trio.current_time()) if remote else None
            if slot is None:
                return
            stream.gate_slot = slot
            try:
                await self._handler(stream)
            except Exception:  # noqa: BLE001 (a failed handshake is the peer's affair)
                gate.counts["inbound_failed"] += 1
            finally:
                gate.leave(slot)

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return self._addresses

    async def close(self) -> None:
        self._scope.cancel()
        await trio.lowlevel.checkpoint()


def peer_name(socket: trio.SocketStream) -> tuple[str, int] | None:
    """Address and port of the other end; IPv6 names have four parts, which py-libp2p refuses."""
    try:
        name = socket.socket.getpeername()
    except OSError:
        return None
    return str(name[0]), int(name[1])
