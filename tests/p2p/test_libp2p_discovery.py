import pytest

from p2p.errors import DecodeError
from p2p.libp2p_discovery import MAX_ADDRESSES, Announcement, read_announcement
from p2p.memory_host import peer_of_seed

PEER = peer_of_seed(b"p" * 32)
ADDRESS = f"/ip4/192.168.1.7/tcp/4001/p2p/{PEER}"
GOOD = {b"id": PEER.encode(), b"run": b"run-1", b"a0": ADDRESS.encode()}


def on_the_wire(announcement: Announcement) -> dict[bytes, bytes | None]:
    return {key.encode(): text.encode() for key, text in announcement.to_properties().items()}


def test_announcement_survives_the_wire() -> None:
    announcement = Announcement(PEER, "run-1", (ADDRESS, f"/ip6/2001:db8::1/tcp/1/p2p/{PEER}"))
    assert read_announcement(on_the_wire(announcement)) == announcement


def test_no_more_addresses_than_the_limit_are_said_or_heard() -> None:
    many = tuple(f"/ip4/10.0.0.{n}/tcp/1/p2p/{PEER}" for n in range(MAX_ADDRESSES + 1))
    heard = read_announcement(on_the_wire(Announcement(PEER, "", many)))
    assert heard.addresses == many[:MAX_ADDRESSES]
    extra: dict[bytes, bytes | None] = {**GOOD, b"a%d" % MAX_ADDRESSES: ADDRESS.encode()}
    assert read_announcement(extra).addresses == (ADDRESS,)


def test_text_that_does_not_fit_a_record_is_left_out() -> None:
    long = f"/dns4/{'x' * 250}/tcp/1/p2p/{PEER}"
    assert Announcement(PEER, "", (long, ADDRESS)).to_properties()["a0"] == ADDRESS


@pytest.mark.parametrize(
    "changes",
    [
        {b"id": b"QmSomebody"},
        {b"id": None},
        {b"id": peer_of_seed(b"q" * 32).encode()},
        {b"a0": b"/ip4/192.168.1.7/tcp/4001"},
        {b"a0": f"/dns4/evil.example/tcp/80/p2p/{PEER}".encode()},
        {b"a0": f"/ip4/1.2.3.4.5/tcp/80/p2p/{PEER}".encode()},
        {b"a0": f"/ip4/1.2.3.4/udp/80/p2p/{PEER}".encode()},
        {b"a0": f"/ip4/1.2.3.4/tcp/0/p2p/{PEER}".encode()},
        {b"a0": f"/ip4/1.2.3.4/tcp/65536/p2p/{PEER}".encode()},
        {b"a0": f"{ADDRESS}/p2p-circuit/p2p/{PEER}".encode()},
        {b"run": b"\xff"},
    ],
)
def test_malformed_announcements_are_refused(changes: dict[bytes, bytes | None]) -> None:
    with pytest.raises(DecodeError):
        read_announcement({**GOOD, **changes})
