"""What a node remembers of LoRA offers: budgets that hold whoever asks, its own, and strangers."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import node.lora_state as module
from node.lora_budget import BudgetSpentError, Leak, Limits, Spend
from node.lora_rows import OfferStanding, OwnOffer, SeenOffer
from node.lora_state import LoraState
from node.state import open_state
from p2p.errors import StorageError
from p2p.ids import ClusterId, RunId
from tests.support.people import NOW, RUN, alice, bob, cid, person

OTHER_RUN = RunId(cid("another run"))
ADAPTER = "ab" * 32
OFFER = cid("offer")
LIMITS = Limits(scalars=32, rows=4, proofs=64)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def loras(tmp_path: Path) -> Iterator[LoraState]:
    with open_state(tmp_path / "node.db") as state:
        state._db.execute("PRAGMA synchronous = OFF")  # power cuts are SQLite's to test
        yield state.loras


def own(name: str = "offer", **changes: object) -> OwnOffer:
    made = OwnOffer(
        offer=cid(name),
        run=RUN,
        cluster=ClusterId(3),
        adapter=ADAPTER,
        folder="/home/x/loras/dark",
        proofs=cid("proofs"),
        created_at=NOW,
        expires_at=NOW + 600,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def seen(name: str, **changes: object) -> SeenOffer:
    made = SeenOffer(
        offer=cid(name),
        run=RUN,
        cluster=ClusterId(3),
        owner=bob.peer,
        proofs=cid("proofs"),
        standing=OfferStanding.PROVED,
        why="",
        facts={"seconds": 1.5, "layers": ["to_q"]},
        expires_at=NOW + 600,
        updated_at=NOW,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_own_offers_come_back_as_they_were_after_a_restart(tmp_path: Path) -> None:
    first, second = own("a"), own("b", created_at=NOW + 1)
    with open_state(tmp_path / "node.db") as state:
        state.loras.save_own_offer(second)
        state.loras.save_own_offer(first)
    with open_state(tmp_path / "node.db") as state:
        assert state.loras.own_offers(RUN) == (first, second)
        assert state.loras.own_offers(OTHER_RUN) == ()
        assert state.loras.own_offer(second.offer) == second
        assert state.loras.own_offer(cid("nobody's")) is None


def test_withdrawn_offer_stays_so_even_if_it_is_saved_again(loras: LoraState) -> None:
    loras.save_own_offer(own())
    assert loras.withdraw(OFFER)
    assert not loras.withdraw(OFFER)
    assert not loras.withdraw(cid("nobody's"))
    loras.save_own_offer(own(expires_at=NOW + 900))
    assert loras.own_offer(OFFER) == own(expires_at=NOW + 900, is_withdrawn=True)


def test_offer_saved_again_may_have_moved(loras: LoraState) -> None:
    loras.save_own_offer(own())
    loras.save_own_offer(own(folder="/elsewhere", proofs=cid("more"), created_at=NOW + 5))
    assert loras.own_offer(OFFER) == own(folder="/elsewhere", proofs=cid("more"))


def test_spends_add_up_over_offers_and_restarts(tmp_path: Path) -> None:
    with open_state(tmp_path / "node.db") as state:
        state.loras.spend(ADAPTER, {"q": Spend(16, 0, 1), "k": Spend(2, 1, 1)}, LIMITS)
    with open_state(tmp_path / "node.db") as state:
        state.loras.spend(ADAPTER, {"q": Spend(4, 2, 3)}, LIMITS)
        assert state.loras.leaks(ADAPTER) == {"k": Leak(2, 1, 1), "q": Leak(20, 2, 4)}
        assert state.loras.leaks("cd" * 32) == {}


@pytest.mark.parametrize(
    ("spend", "what", "spent", "limit"),
    [
        (Spend(scalars=17), "scalars", 16, 32),
        (Spend(rows=4), "rows", 1, 4),
        (Spend(proofs=64), "proofs", 1, 64),
    ],
)
def test_spend_that_passes_a_limit_in_one_layer_changes_no_layer(
    loras: LoraState, spend: Spend, what: str, spent: int, limit: int
) -> None:
    loras.spend(ADAPTER, {"q": Spend(16, 1, 1)}, LIMITS)
    before = loras.leaks(ADAPTER)
    with pytest.raises(BudgetSpentError) as caught:
        loras.spend(ADAPTER, {"a": Spend(1, 1, 1), "q": spend, "z": Spend(1, 1, 1)}, LIMITS)
    error = caught.value
    assert (error.module, error.what, error.spent, error.limit) == ("q", what, spent, limit)
    assert loras.leaks(ADAPTER) == before
    one_less = replace(spend, **{what: getattr(spend, what) - 1})
    loras.spend(ADAPTER, {"q": one_less}, LIMITS)


def test_each_adapter_and_each_layer_has_a_budget_of_its_own(loras: LoraState) -> None:
    loras.spend(ADAPTER, {"q": Spend(32, 4, 64)}, LIMITS)
    for spend in (Spend(scalars=1), Spend(rows=1), Spend(proofs=1)):
        with pytest.raises(BudgetSpentError):
            loras.spend(ADAPTER, {"q": spend}, LIMITS)
    loras.spend(ADAPTER, {"k": Spend(32, 4, 64)}, LIMITS)
    loras.spend("cd" * 32, {"q": Spend(32, 4, 64)}, LIMITS)


def test_spend_that_the_disk_breaks_off_is_not_counted(
    loras: LoraState, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def execute(connection: object, statement: str, values: tuple[object, ...] = ()) -> object:
        if statement.startswith("INSERT"):
            written.append(statement)
            if len(written) == 2:
                raise StorageError("disk I/O error")
        return loras._db.execute(statement, values)

    with monkeypatch.context() as patch:
        patch.setattr(module, "execute", execute)
        with pytest.raises(StorageError):
            loras.spend(ADAPTER, {"q": Spend(1, 1, 1), "k": Spend(1, 1, 1)}, LIMITS)
    assert len(written) == 2
    assert loras.leaks(ADAPTER) == {}


KILLED = """
import os, sys
from pathlib import Path
from node.lora_budget import Limits, Spend
from node.state import open_state
written = []
def kill(statement):
    written.append(statement)
    if sum(text.startswith("INSERT") for text in written) == 2:
        os._exit(9)
with open_state(Path(sys.argv[1])) as state:
    state._db.set_trace_callback(kill)
    wanted = {"q": Spend(1, 1, 1), "k": Spend(1, 1, 1)}
    state.loras.spend(sys.argv[2], wanted, Limits(32, 4, 64))
"""


@pytest.mark.slow
def test_process_killed_in_the_middle_of_a_spend_has_counted_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "node.db"), ADAPTER]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == 9
    with open_state(tmp_path / "node.db") as state:
        assert state.loras.leaks(ADAPTER) == {}


def test_racing_askers_never_pass_a_limit_together(tmp_path: Path) -> None:
    """Each with a connection of its own, as processes have: 4 x 12 ask for 1 of 32, in 2 layers."""
    with open_state(tmp_path / "node.db"):
        pass
    together = threading.Barrier(4)
    refused: list[BudgetSpentError] = []

    def ask() -> None:
        with open_state(tmp_path / "node.db") as state:
            state._db.execute("PRAGMA synchronous = OFF")
            together.wait()
            for _ in range(12):
                try:
                    state.loras.spend(ADAPTER, {"q": Spend(1, 0, 1), "k": Spend(1, 0, 1)}, LIMITS)
                except BudgetSpentError as error:
                    refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_state(tmp_path / "node.db") as state:
        assert state.loras.leaks(ADAPTER) == {"k": Leak(32, 0, 32), "q": Leak(32, 0, 32)}
    assert len(refused) == 4 * 12 - 32


def test_seen_offers_come_back_the_newest_first_after_a_restart(tmp_path: Path) -> None:
    old, new = seen("a"), seen("b", updated_at=NOW + 1, standing=OfferStanding.REFUSED, why="late")
    with open_state(tmp_path / "node.db") as state:
        for item in (new, old):
            state.loras.note_seen(item)
    with open_state(tmp_path / "node.db") as state:
        assert state.loras.seen_all(RUN) == (new, old)
        assert state.loras.seen_all(OTHER_RUN) == ()
        assert state.loras.seen(old.offer) == old
        assert state.loras.seen(cid("never")) is None


def test_what_is_found_out_later_replaces_what_was_known(loras: LoraState) -> None:
    loras.note_seen(seen("a", standing=OfferStanding.CLAIMED, facts={}))
    loras.note_seen(seen("a"))
    assert loras.seen_all(RUN) == (seen("a"),)


@pytest.mark.parametrize("after_s", [599.9, 600.0])
def test_offer_is_forgotten_when_its_time_is_over_and_not_before(
    loras: LoraState, after_s: float
) -> None:
    loras.note_seen(seen("a"))
    loras.note_seen(seen("b", expires_at=NOW + 900))
    is_over = after_s >= 600
    assert loras.forget_expired(NOW + after_s) == int(is_over)
    assert (loras.seen(cid("a")) is None) is is_over
    assert loras.seen(cid("b")) is not None


def test_memory_of_offers_is_as_large_as_it_says() -> None:
    assert module.MAX_SEEN == 2000


def test_flood_of_claims_pushes_out_claims_and_refused_ones_but_nothing_proved(
    loras: LoraState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SEEN", 5)
    loras.note_seen(seen("proved"))
    loras.note_seen(seen("measured", standing=OfferStanding.MEASURED))
    loras.note_seen(seen("refused", standing=OfferStanding.REFUSED, updated_at=NOW + 0.5))
    for number in range(1, 9):
        claim = seen(f"{number}", standing=OfferStanding.CLAIMED, updated_at=NOW + number)
        loras.note_seen(claim)
    kept = {item.offer for item in loras.seen_all(RUN)}
    assert kept == {cid(name) for name in ("proved", "measured", "6", "7", "8")}


def test_oldest_of_the_proved_go_when_there_is_nothing_else(
    loras: LoraState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SEEN", 2)
    for number in range(3):
        loras.note_seen(seen(f"{number}", updated_at=NOW + number))
    assert [item.offer for item in loras.seen_all(RUN)] == [cid("2"), cid("1")]


def test_facts_that_no_reader_could_read_are_refused(loras: LoraState) -> None:
    with pytest.raises(ValueError, match="JSON"):
        loras.note_seen(seen("a", facts={"loss": float("nan")}))
    assert loras.seen_all(RUN) == ()


def test_ban_ends_when_it_said_and_survives_a_restart(tmp_path: Path) -> None:
    with open_state(tmp_path / "node.db") as state:
        state.loras.ban(bob.peer, "sold something else", NOW + 60)
    with open_state(tmp_path / "node.db") as state:
        assert state.loras.is_banned(bob.peer, NOW + 59.9)
        assert not state.loras.is_banned(bob.peer, NOW + 60)
        assert not state.loras.is_banned(alice.peer, NOW)


def test_shorter_ban_does_not_end_a_longer_one(loras: LoraState) -> None:
    for until in (NOW + 60, NOW + 10):
        loras.ban(bob.peer, "again", until)
    assert loras.is_banned(bob.peer, NOW + 30)
    loras.ban(bob.peer, "again", NOW + 90)
    assert loras.is_banned(bob.peer, NOW + 80)


def test_bans_that_end_first_are_forgotten_first(
    loras: LoraState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OFFENDERS", 2)
    for number in (3, 1, 2):
        loras.ban(person(number).peer, "", NOW + number)
    assert [loras.is_banned(person(n).peer, NOW) for n in (1, 2, 3)] == [False, True, True]
