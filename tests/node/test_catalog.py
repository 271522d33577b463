"""What is believed of adverts, claims and summaries: what is signed, placed, live and fenced."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from node.catalog import Catalog
from node.errors import NodeError
from node.folders import unpacked_expert
from node.keeping import keep_checkpoint
from p2p.codec import BLOB_KEY, Verified, open_signed, seal
from p2p.dht.validator import key_hash
from p2p.errors import PeerError, TransportError
from p2p.file_sets import FileEntry
from p2p.identity import Identity
from p2p.ids import BlobId, ClusterId, RunId
from p2p.limits import MAX_OWNERS_PER_KEY
from p2p.records import (
    CheckpointManifest,
    Claim,
    ExpertAdvert,
    RouterAdvert,
    claim_key,
    expert_key,
    router_key,
)
from tests.node.test_fetching import acquaint, announce
from tests.support.people import alice, bob, carol, cid, person
from tests.support.swarm import BUDGET, POLICY, MemberNode, World, open_nodes, wall, world

__all__ = ["world"]

ZERO = ClusterId(0)
MARGIN = 65_536


@asynccontextmanager
async def reader(world: World) -> AsyncIterator[MemberNode]:
    async with world.open_node("ada") as node:
        yield node


def advert(node: MemberNode, who: Identity = alice, **changes: object) -> Verified[ExpertAdvert]:
    made = ExpertAdvert(
        run=node.context.run,
        cluster=ZERO,
        epoch=1,
        step=10,
        samples=100,
        manifest=cid("checkpoint"),
        size=10,
        loss=0.5,
        is_orphan=False,
        issued_at=wall(),
    )
    made = replace(made, **changes)  # type: ignore[arg-type]
    key = expert_key(made.run, made.cluster)
    envelope = seal(made, who, key=key, expires_at=wall() + 600)
    return open_signed(ExpertAdvert, envelope, key=key, now=wall())


def claim(node: MemberNode, who: Identity, epoch: int, **changes: object) -> bytes:
    made = Claim(
        node.context.run,
        ZERO,
        epoch,
        0,
        0,
        None,
        wall(),
        wall() + POLICY.lease_s,
        is_released=False,
    )
    made = replace(made, **changes)  # type: ignore[arg-type]
    return seal(made, who, key=claim_key(made.run, made.cluster), expires_at=made.expires_at)


def summary(node: MemberNode, who: Identity, epoch: int, name: str) -> bytes:
    made = RouterAdvert(node.context.run, ZERO, epoch, cid(name), wall())
    return seal(made, who, key=router_key(made.run, ZERO), expires_at=wall() + 600)


def plant(world: World, key: str, who: Identity, value: bytes, lifetime_s: float = 600.0) -> None:
    """Put bytes into the DHT past its validator, as a hostile DHT node would."""
    world.dht._whole.put(key_hash(key), who.public_key, value, wall() + lifetime_s)


@pytest.mark.parametrize(("over", "taken"), [(MARGIN, True), (MARGIN + 1, False)])
async def test_advert_far_beyond_the_budget_is_refused(
    world: World, autojump_clock: MockClock, over: int, *, taken: bool
) -> None:
    async with reader(world) as node:
        assert node.catalog.add(advert(node, samples=BUDGET + over)) is taken
        assert node.catalog.refused == int(not taken)


@pytest.mark.parametrize(("cluster", "taken"), [(3, True), (4, False)])
async def test_advert_of_a_cluster_that_is_not_there_is_refused(
    world: World, autojump_clock: MockClock, cluster: int, *, taken: bool
) -> None:
    async with reader(world) as node:
        assert node.catalog.add(advert(node, cluster=ClusterId(cluster))) is taken


async def test_advert_of_another_run_is_refused(world: World, autojump_clock: MockClock) -> None:
    async with reader(world) as node:
        assert not node.catalog.add(advert(node, run=RunId(cid("other"))))
        assert node.catalog.refused == 1


async def test_bad_records_in_the_dht_are_dropped_and_counted(
    world: World, autojump_clock: MockClock
) -> None:
    async with reader(world) as node:
        good = advert(node)
        key = expert_key(node.context.run, ZERO)
        forged = good.envelope[:-1] + bytes([good.envelope[-1] ^ 1])
        plant(world, key, alice, good.envelope)
        plant(world, key, bob, forged)
        plant(world, key, carol, advert(node, cluster=ClusterId(1)).envelope)  # misplaced
        plant(world, key, person(1), b"\xc1garbage")
        await node.catalog.refresh()
        assert [one.owner for one in node.catalog.adverts(ZERO)] == [alice.peer]
        assert node.catalog.refused == 3


async def test_bad_claims_are_dropped_and_counted(world: World, autojump_clock: MockClock) -> None:
    async with reader(world) as node:
        key = claim_key(node.context.run, ZERO)
        good = claim(node, alice, 1)
        plant(world, key, alice, good)
        plant(world, key, bob, good[:-1] + bytes([good[-1] ^ 1]))
        plant(world, key, carol, claim(node, carol, 1, cluster=ClusterId(1)))
        plant(world, key, person(1), claim(node, person(1), 1, run=RunId(cid("other"))))
        await node.board.read()
        assert node.board.ownerships[ZERO].owner == alice.peer
        assert node.board.refused == 3


async def test_expired_advert_is_forgotten(world: World, autojump_clock: MockClock) -> None:
    async with reader(world) as node:
        node.catalog.add(advert(node))
        await trio.sleep(599)
        assert node.catalog.best(ZERO) is not None
        await trio.sleep(2)
        assert node.catalog.best(ZERO) is None
        assert node.catalog.coverage() == 0.0


async def test_owners_own_copy_is_preferred_to_one_that_saw_more(
    world: World, autojump_clock: MockClock
) -> None:
    async with reader(world) as node:
        plant(world, claim_key(node.context.run, ZERO), bob, claim(node, bob, 1))
        await node.board.read()
        node.catalog.add(advert(node, alice, samples=900, manifest=cid("stranger's")))
        node.catalog.add(advert(node, bob, samples=100))
        best, base = node.catalog.best(ZERO), node.catalog.base(ZERO)
        assert best is not None
        assert base is not None
        assert best.owner == base.owner == bob.peer


async def test_orphan_is_drawn_with_but_never_a_base(
    world: World, autojump_clock: MockClock
) -> None:
    async with reader(world) as node:
        node.catalog.add(advert(node, is_orphan=True))
        assert node.catalog.best(ZERO) is not None
        assert node.catalog.base(ZERO) is None
        assert node.catalog.bases(ZERO) == ()
        assert not node.catalog.is_complete(ZERO)


async def test_epoch_is_on_disk_before_anybody_acts_on_it(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reader(world) as node:
        plant(world, claim_key(node.context.run, ZERO), bob, claim(node, bob, 6))
        seen: list[int] = []
        original = Catalog.note_ownership

        def note(self: Catalog, ownership: object) -> None:
            seen.append(node.context.state.highest_epoch(node.context.run, ZERO))
            original(self, ownership)  # type: ignore[arg-type]

        monkeypatch.setattr(Catalog, "note_ownership", note)
        await node.board.read()
        assert seen[0] == 6


async def test_dht_that_is_down_is_said(world: World, autojump_clock: MockClock) -> None:
    async with reader(world) as node:
        world.dht.take_down("ada")
        with pytest.raises(TransportError):
            await node.catalog.refresh()
        with pytest.raises(TransportError):
            await node.board.read()


async def test_stranger_cannot_replace_the_owners_summary_by_a_high_epoch(
    world: World, autojump_clock: MockClock
) -> None:
    async with reader(world) as node:
        key = router_key(node.context.run, ZERO)
        plant(world, key, alice, summary(node, alice, 1, "the owner's"))
        plant(world, key, bob, summary(node, bob, 2**40, "a stranger's"))
        node.catalog.add(advert(node, alice))
        await node.catalog.refresh()
        assert [one.owner for one in node.catalog.summaries(ZERO)] == [alice.peer, bob.peer]


async def test_summaries_expire(world: World, autojump_clock: MockClock) -> None:
    async with reader(world) as node:
        plant(world, router_key(node.context.run, ZERO), alice, summary(node, alice, 1, "s"))
        await node.catalog.refresh()
        assert node.catalog.summaries(ZERO)
        await trio.sleep(601)
        assert node.catalog.summaries(ZERO) == ()


async def test_flood_of_strangers_neither_fills_memory_nor_hides_the_owner(
    world: World, autojump_clock: MockClock
) -> None:
    async with reader(world) as node:
        plant(world, claim_key(node.context.run, ZERO), bob, claim(node, bob, 1))
        await node.board.read()
        node.catalog.add(advert(node, bob))
        for number in range(MAX_OWNERS_PER_KEY + 20):
            node.catalog.add(advert(node, person(number), samples=BUDGET))
        adverts = node.catalog.adverts(ZERO)
        assert len(adverts) == MAX_OWNERS_PER_KEY
        assert adverts[0].owner == bob.peer


async def test_renewed_advert_lives_on(world: World, autojump_clock: MockClock) -> None:
    async with reader(world) as node:
        first = advert(node)
        node.catalog.add(first)
        await trio.sleep(400)
        assert not node.catalog.add(advert(node, issued_at=first.record.issued_at))  # no news
        await trio.sleep(400)
        assert node.catalog.best(ZERO) is not None


async def test_one_checkpoint_that_nobody_gives_does_not_hold_up_the_others(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben", "cem")) as (ada, ben, cem):
        acquaint(ada, ben, cem)
        world.hub.faults[cem.swarm.child_id] = "stall"
        real = _checkpoint(ben, ClusterId(3), samples=300)
        await announce(ben, real)
        for number in range(3):
            lost = cid(f"lost {number}")
            await announce(cem, lost)
            ada.catalog.add(advert(ada, cluster=ClusterId(number), manifest=lost))
        honest = {"cluster": ClusterId(3), "samples": 300, "manifest": real}
        ada.catalog.add(advert(ada, ben.context.identity, **honest))
        await ada.board.read()
        assert {view.cluster: view.samples for view in ada.board.views()} == {
            **dict.fromkeys(map(ClusterId, range(3)), 0),
            ClusterId(3): 300,
        }


def _checkpoint(node: MemberNode, cluster: ClusterId, *, samples: int) -> BlobId:
    context = node.context
    data = f"model {cluster}".encode()
    entry = FileEntry("model.safetensors", len(data), (context.blobs.put(data),))
    manifest = CheckpointManifest(context.run, cluster, 1, 10, samples, 0.5, None, (entry,), wall())
    envelope = seal(manifest, context.identity, key=BLOB_KEY, expires_at=None)
    return keep_checkpoint(context.blobs, envelope, cluster, samples, (entry,))


@pytest.mark.parametrize(
    ("lie", "field"),
    [
        ({"cluster": ClusterId(2)}, "cluster"),
        ({"samples": 900}, "samples"),
        ({"epoch": 2}, "epoch"),
    ],
)
async def test_checkpoint_that_is_not_what_its_advert_says_is_not_used(
    world: World, autojump_clock: MockClock, lie: dict[str, int], field: str
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben):
        acquaint(ada, ben)
        real = _checkpoint(ben, ClusterId(3), samples=300)
        honest = {"cluster": ClusterId(3), "samples": 300, "manifest": real}
        good = advert(ada, ben.context.identity, **honest)
        assert (await unpacked_expert(ada.context, good)).is_dir()
        bad = advert(ada, ben.context.identity, **{**honest, **lie})
        with pytest.raises(PeerError, match=field):
            await unpacked_expert(ada.context, bad)


async def test_checkpoint_advertised_by_a_thief_is_not_used(
    world: World, autojump_clock: MockClock
) -> None:
    async with open_nodes(world, ("ada", "ben")) as (ada, ben):
        acquaint(ada, ben)
        real = _checkpoint(ben, ClusterId(3), samples=300)
        stolen = advert(ada, carol, cluster=ClusterId(3), samples=300, manifest=real)
        with pytest.raises((PeerError, NodeError), match=r"owner|reachable"):
            await unpacked_expert(ada.context, stolen)
