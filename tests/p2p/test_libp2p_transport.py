"""The gate before the handshake, and the muxer's deadlines."""

from collections import Counter
from typing import Any

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError
from trio.testing import MockClock

from p2p.errors import ListenError, TransportError
from p2p.libp2p_addresses import dialable
from p2p.libp2p_muxer import GuardedYamux
from p2p.libp2p_settings import HostLimits
from p2p.libp2p_transport import Gate, GuardedTCP


def gate_of(**changes: Any) -> Gate:
    return Gate(HostLimits(**changes), Counter())


def enter(gate: Gate, ip: str, now: float = 0.0) -> Any:
    return gate.enter(ip, trio.CancelScope(), now)


def test_connections_of_one_address_are_bounded_and_given_back() -> None:
    gate = gate_of(max_per_ip=2)
    first, second = enter(gate, "1.2.3.4"), enter(gate, "1.2.3.4")
    assert first is not None
    assert second is not None
    assert enter(gate, "1.2.3.4") is None
    assert enter(gate, "1.2.3.5") is not None
    gate.leave(first)
    assert enter(gate, "1.2.3.4") is not None
    assert gate.counts == {"inbound_refused_per_ip": 1}


def test_new_connections_of_one_address_per_second_are_bounded() -> None:
    gate = gate_of(max_new_per_ip_per_s=2, max_per_ip=99)
    assert [enter(gate, "1.2.3.4") is None for _ in range(3)] == [False, False, True]
    assert enter(gate, "1.2.3.4", now=0.5) is not None


def test_a_64_of_ipv6_counts_as_one_address() -> None:
    gate = gate_of(max_per_ip=1)
    assert enter(gate, "2001:db8::1") is not None
    assert enter(gate, "2001:db8::ffff:2%eth0") is None
    assert enter(gate, "2001:db8:0:1::1") is not None


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_is_exempt_only_where_settings_say_so(ip: str) -> None:
    exempt = gate_of(max_per_ip=1)
    assert enter(exempt, ip) is not None
    assert enter(exempt, ip) is not None
    strict = gate_of(max_per_ip=1, is_loopback_exempt=False)
    assert enter(strict, ip) is not None
    assert enter(strict, ip) is None


async def test_the_oldest_half_open_of_the_busiest_address_makes_room() -> None:
    gate = gate_of(max_pending=3, max_per_ip=2)
    honest = enter(gate, "1.1.1.1")
    oldest, other = enter(gate, "6.6.6.6"), enter(gate, "6.6.6.6")
    newcomer = enter(gate, "2.2.2.2")
    assert newcomer is not None
    assert oldest.scope.cancel_called
    assert not honest.scope.cancel_called
    assert not other.scope.cancel_called


def test_upgraded_connections_are_never_evicted_but_bounded() -> None:
    gate = gate_of(max_pending=1, max_inbound=2)
    for ip in ("1.1.1.1", "2.2.2.2"):
        enter(gate, ip).is_pending = False
    assert enter(gate, "3.3.3.3") is None
    assert gate.counts == {"inbound_refused_full": 1}


@pytest.mark.parametrize(
    "address",
    ["", "/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/1", "/ip4/127.0.0.1/tcp/x", "/a/b/tcp/1/c"],
)
async def test_listen_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(TransportError, match="cannot listen"):
        await GuardedTCP(gate_of()).bind(address)


async def test_listen_address_of_another_machine_is_refused_by_name() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1/tcp/4001"):
        await GuardedTCP(gate_of()).bind("/ip4/192.0.2.1/tcp/4001")


def test_any_address_is_spelled_out_and_others_are_kept() -> None:
    anywhere = "/ip4/0.0.0.0/tcp/4001"
    found = dialable((anywhere, "/ip4/127.0.0.1/tcp/4002"))
    assert anywhere not in found
    assert "/ip4/127.0.0.1/tcp/4001" in found
    assert found[-1] == "/ip4/127.0.0.1/tcp/4002"


class SlowWire:
    """A secure connection whose writes take their time."""

    is_initiator = True

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.written: list[bytes] = []

    async def write(self, data: bytes) -> None:
        await trio.sleep(self.seconds)
        self.written.append(data)


def yamux_over(wire: SlowWire) -> tuple[GuardedYamux, list[str]]:
    async def on_close() -> None:
        pytest.fail("not reached")

    muxed = GuardedYamux(wire, "peer", host_limits=HostLimits(), on_close=on_close)
    aborted: list[str] = []
    setattr(muxed, "abort", lambda: aborted.append("aborted"))  # noqa: B010 (mypy)
    return muxed, aborted


async def test_a_frame_is_written_whole_though_its_sender_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    """Half a frame would ruin every other stream of the connection."""
    wire = SlowWire(2.0)
    muxed, aborted = yamux_over(wire)
    with trio.move_on_after(1.0) as scope:
        await muxed._write_frame(b"frame")
    assert scope.cancelled_caught
    assert wire.written == [b"frame"]
    assert not aborted


async def test_a_peer_that_stops_reading_is_cut_off(
    autojump_clock: MockClock,
) -> None:
    muxed, aborted = yamux_over(SlowWire(11.0))
    with pytest.raises(ConnectionClosedError):
        await muxed._write_frame(b"frame")
    assert aborted == ["aborted"]


async def test_a_silent_peer_is_cut_off_after_three_pings(
    autojump_clock: MockClock,
) -> None:
    wire = SlowWire(0.0)
    muxed, aborted = yamux_over(wire)
    started_at = trio.current_time()
    await muxed._measure_rtt_loop()
    assert aborted == ["aborted"]
    assert len(wire.written) == 3
    assert trio.current_time() - started_at == pytest.approx(45.0, abs=0.1)


async def test_a_peer_that_answers_is_kept(autojump_clock: MockClock) -> None:
    class AnsweringWire(SlowWire):
        async def write(self, data: bytes) -> None:
            await super().write(data)
            muxed._ping_event.set()

    wire = AnsweringWire(0.0)
    muxed, aborted = yamux_over(wire)
    with trio.move_on_after(151):
        await muxed._measure_rtt_loop()
    assert not aborted
    assert len(wire.written) == 11
