from dataclasses import replace

import pytest

from p2p.codec import pack, unpack
from p2p.errors import DecodeError, LimitError
from p2p.file_sets import FileEntry, FileSet
from p2p.limits import (
    CHUNK_SIZE,
    MAX_ADDRESS_LENGTH,
    MAX_ADDRESSES,
    MAX_CLUSTERS,
    MAX_EPOCH,
    MAX_FILE_NAME,
    MAX_FILE_SIZE,
    MAX_LABEL,
    MAX_LEASE_S,
    MAX_MANIFEST_FILES,
    MAX_RECEIPT_EXPERTS,
)
from p2p.records import Claim, ClaimPolicy, RunManifest, is_home_of, node_keys
from tests.support.lora_offers import (
    agreement,
    delivery,
    lora_offer,
    offer_advert,
    probe_receipt,
    probe_request,
)
from tests.support.people import (
    NOW,
    RUN,
    advert,
    alice,
    bob,
    checkpoint_manifest,
    cid,
    claim,
    file_entry,
    home_of,
    node_record,
    provider_record,
    receipt,
    router_advert,
)


def run_manifest(**changes: object) -> RunManifest:
    manifest = RunManifest(
        name="fashion",
        clusters=2,
        preset="tiny",
        budget_samples=96_000,
        save_samples=8_000,
        shared=cid("shared"),
        data=(cid("data 0"), cid("data 1")),
        claim_policy=ClaimPolicy(),
    )
    return replace(manifest, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "a\\b",
        "../../etc/passwd",
        "/etc/passwd",
        "a\0b",
        "a\nb",
        "a b",
        "-rf",
        "\u202egnp.exe",
        "naïve",
        "C:evil",
        "a\n",
    ],
)
def test_a_file_name_that_is_not_bare_and_portable_is_refused(name: str) -> None:
    with pytest.raises(DecodeError):
        FileEntry(name, 0, ())


def test_a_file_name_is_as_long_as_the_limit_and_no_longer() -> None:
    assert FileEntry("a" * MAX_FILE_NAME, 0, ()).size == 0
    with pytest.raises(LimitError):
        FileEntry("a" * (MAX_FILE_NAME + 1), 0, ())


@pytest.mark.parametrize(
    ("size", "chunks"),
    [(0, 0), (1, 1), (CHUNK_SIZE, 1), (CHUNK_SIZE + 1, 2), (MAX_FILE_SIZE, 16 * 1024)],
)
def test_chunks_cover_the_file_exactly(size: int, chunks: int) -> None:
    ids = (cid("chunk"),) * chunks
    assert FileEntry("file", size, ids).chunks == ids
    for wrong in (chunks + 1, chunks - 1):
        if wrong >= 0:
            with pytest.raises(DecodeError, match="chunks"):
                FileEntry("file", size, (cid("chunk"),) * wrong)


def test_a_file_over_the_size_limit_or_below_nothing_is_refused() -> None:
    with pytest.raises(LimitError):
        FileEntry("file", MAX_FILE_SIZE + 1, (cid("chunk"),) * (16 * 1024 + 1))
    with pytest.raises(DecodeError):
        FileEntry("file", -1, ())


def test_two_files_of_a_set_never_share_a_name_whatever_the_case() -> None:
    assert FileSet((file_entry("a", 3), file_entry("b", 4))).size == 7
    for second in ("a", "A"):
        with pytest.raises(DecodeError, match="one name"):
            FileSet((file_entry("a"), file_entry(second)))
        with pytest.raises(DecodeError, match="one name"):
            checkpoint_manifest(files=(file_entry("a"), file_entry(second)))


def test_a_set_holds_as_many_files_as_the_limit_and_no_more() -> None:
    entries = tuple(FileEntry(f"f{number}", 0, ()) for number in range(MAX_MANIFEST_FILES + 1))
    assert len(FileSet(entries[:-1]).files) == MAX_MANIFEST_FILES
    with pytest.raises(LimitError):
        FileSet(entries)


def test_the_largest_file_still_fits_one_manifest_blob() -> None:
    files = FileSet((file_entry("largest", MAX_FILE_SIZE),))
    data = pack(files)
    assert len(data) <= CHUNK_SIZE
    assert unpack(FileSet, data, max_size=CHUNK_SIZE) == files
    with pytest.raises(LimitError, match="one blob"):
        pack(FileSet((*files.files, file_entry("more", MAX_FILE_SIZE // 8))))


@pytest.mark.parametrize(
    "changes",
    [
        {"clusters": 0, "data": ()},
        {"clusters": 3},
        {"clusters": MAX_CLUSTERS + 1, "data": (cid("x"),) * (MAX_CLUSTERS + 1)},
        {"save_samples": 0},
        {"save_samples": 96_001},
        {"name": "two\nlines"},
        {"name": "\x1b[31mred"},
    ],
)
def test_a_run_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        run_manifest(**changes)


def test_a_run_of_the_most_clusters_fits_its_limits() -> None:
    manifest = run_manifest(clusters=MAX_CLUSTERS, data=(cid("x"),) * MAX_CLUSTERS)
    assert unpack(RunManifest, pack(manifest), max_size=CHUNK_SIZE) == manifest


@pytest.mark.parametrize(
    "changes",
    [
        {"settle_s": 0.0},
        {"settle_s": 100.0},
        {"renew_s": 240.0},
        {"lease_s": MAX_LEASE_S + 1},
        {"stop_fraction": 1.0},
        {"patience_renewals": 0},
        {"forfeit_s": 0.0},
    ],
)
def test_a_claim_policy_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        replace(ClaimPolicy(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": -1},
        {"cluster": MAX_CLUSTERS},
        {"epoch": 0},
        {"epoch": MAX_EPOCH + 1},
        {"renewal": -1},
        {"samples": 5},
        {"samples": -1, "checkpoint": cid("x")},
        {"samples": 0, "checkpoint": cid("x")},
        {"samples": 2**53 + 1, "checkpoint": cid("x")},
        {"expires_at": NOW},
        {"expires_at": NOW + MAX_LEASE_S + 1},
    ],
)
def test_a_claim_out_of_range_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        replace(claim(), **changes)  # type: ignore[arg-type]


def test_a_claim_at_every_limit_is_accepted() -> None:
    made = claim(MAX_CLUSTERS - 1, epoch=MAX_EPOCH, lease_s=MAX_LEASE_S)
    assert isinstance(made, Claim)


@pytest.mark.parametrize("changes", [{"epoch": 0}, {"step": -1}, {"samples": -1}, {"size": -1}])
def test_an_advert_out_of_range_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        replace(advert(), **changes)  # type: ignore[arg-type]
    if "size" not in changes:
        with pytest.raises(DecodeError):
            checkpoint_manifest(**changes)


def test_what_a_node_says_of_itself_is_bounded_and_printable() -> None:
    assert node_record("x" * MAX_LABEL).name == "x" * MAX_LABEL
    with pytest.raises(LimitError):
        node_record("x" * (MAX_LABEL + 1))
    with pytest.raises(DecodeError):
        node_record("\x1b]0;owned\x07")
    longest = "a" * MAX_ADDRESS_LENGTH
    assert replace(node_record(), bulk_addresses=(longest,) * MAX_ADDRESSES)
    for wrong in ((longest,) * (MAX_ADDRESSES + 1), (longest + "a",)):
        with pytest.raises(LimitError):
            replace(node_record(), host_addresses=wrong)


def test_a_receipt_is_bounded() -> None:
    one = (0, cid("expert"), 1.0)
    assert len(receipt(b"", experts=(one,) * MAX_RECEIPT_EXPERTS).experts) == MAX_RECEIPT_EXPERTS
    with pytest.raises(LimitError):
        receipt(b"", experts=(one,) * (MAX_RECEIPT_EXPERTS + 1))
    for changes in ({"steps": 0}, {"seed": -1}, {"experts": ((MAX_CLUSTERS, cid("x"), 1.0),)}):
        with pytest.raises(DecodeError):
            receipt(b"", **changes)


@pytest.mark.parametrize(
    "record",
    [
        node_record(),
        claim(3),
        advert(3),
        router_advert(3),
        provider_record("a", "b"),
        checkpoint_manifest(),
        receipt(b"png"),
        lora_offer(),
        offer_advert(3),
        agreement(),
        delivery(),
        probe_request(),
        probe_receipt(),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_belongs_under_its_own_key_alone(record: object) -> None:
    home = home_of(record, alice)  # type: ignore[arg-type]
    assert is_home_of(record, alice.peer, home)  # type: ignore[arg-type]
    assert not is_home_of(record, alice.peer, home + "0")  # type: ignore[arg-type]
    assert not is_home_of(record, alice.peer, f"paris/1/{RUN}/claim/4")  # type: ignore[arg-type]


def test_node_records_lie_in_the_owner_s_shard() -> None:
    homes = {home_of(node_record(), owner) for owner in (alice, bob)}
    assert homes <= set(node_keys(RUN))
    if len(homes) == 2:
        assert not is_home_of(node_record(), alice.peer, home_of(node_record(), bob))


def test_a_provider_may_list_every_folder_under_the_key_of_any() -> None:
    record = provider_record("a", "b")
    assert is_home_of(record, bob.peer, home_of(provider_record("b"), bob))
