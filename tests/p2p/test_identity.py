import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2p.errors import IdentityError
from p2p.identity import Identity, export_pem, load_or_create
from p2p.ids import peer_public_key
from p2p.pet_names import pet_name
from tests.support.people import alice, bob, person


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "identity.key"


def test_an_identity_is_created_once_and_kept(path: Path) -> None:
    first, was_created = load_or_create(path)
    again, was_created_again = load_or_create(path)
    assert (was_created, was_created_again) == (True, False)
    assert again.seed == first.seed
    assert again.peer == first.peer
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.key"]


def test_the_file_is_private_and_its_folder_too(path: Path) -> None:
    old = os.umask(0)
    try:
        load_or_create(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_two_new_nodes_differ(tmp_path: Path) -> None:
    assert (
        load_or_create(tmp_path / "a" / "k")[0].peer != load_or_create(tmp_path / "b" / "k")[0].peer
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610])
def test_a_file_open_to_others_is_refused_with_the_command_that_helps(
    path: Path, mode: int
) -> None:
    load_or_create(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match=f"chmod 600 {path}"):
        load_or_create(path)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o701])
def test_a_folder_open_to_others_is_refused(path: Path, mode: int) -> None:
    load_or_create(path)
    path.parent.chmod(mode)
    with pytest.raises(IdentityError, match=f"chmod 700 {path.parent}"):
        load_or_create(path)


def test_links_are_refused(path: Path, tmp_path: Path) -> None:
    load_or_create(path)
    real = path.rename(path.with_name("real.key"))
    path.symlink_to(real)
    with pytest.raises(IdentityError, match="link"):
        load_or_create(path)
    linked_folder = tmp_path / "linked"
    linked_folder.symlink_to(path.parent)
    with pytest.raises(IdentityError, match="link"):
        load_or_create(linked_folder / "real.key")


def test_a_link_to_nowhere_is_not_written_through(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IdentityError, match="link"):
        load_or_create(path)
    assert not (tmp_path / "elsewhere").exists()


def other_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def encrypted_key() -> bytes:
    key = serialization.load_pem_private_key(export_pem(alice), password=None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(export_pem(alice)[:-40], id="cut"),
        pytest.param(os.urandom(64), id="noise"),
        pytest.param(b"x" * 1_000_000, id="large"),
        pytest.param(other_key(), id="another kind of key"),
        pytest.param(encrypted_key(), id="encrypted"),
    ],
)
def test_a_malformed_file_is_refused_and_left_alone(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="restore your backup"):
        load_or_create(path)
    assert path.read_bytes() == data


def test_what_is_not_a_file_is_refused_and_does_not_hang(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    os.mkfifo(path, 0o600)
    with pytest.raises(IdentityError, match="not a regular file"):
        load_or_create(path)
    path.unlink()
    path.mkdir(mode=0o700)
    with pytest.raises(IdentityError):
        load_or_create(path)


def test_a_folder_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(IdentityError, match=r"File exists|Not a directory"):
        load_or_create(tmp_path / "file" / "identity.key")


def test_who_comes_second_takes_the_key_of_who_came_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def slow_link(source: Path, target: Path, *, follow_symlinks: bool) -> None:
        monkeypatch.setattr(os, "link", link)
        target.write_bytes(export_pem(bob))  # another process, between our look and our link
        target.chmod(0o600)
        link(source, target, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "link", slow_link)
    found, was_created = load_or_create(path)
    assert (found.peer, was_created) == (bob.peer, False)
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.key"]


def test_a_failed_write_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IdentityError, match="No space left"):
        load_or_create(path)
    assert list(path.parent.iterdir()) == []


def test_the_child_s_key_is_another_and_always_the_same() -> None:
    assert alice.dht_seed() == Identity.from_seed(alice.seed).dht_seed()
    assert len({alice.dht_seed(), alice.seed, bob.dht_seed()}) == 3
    # HKDF-SHA256 (RFC 5869) of 32 zero bytes, no salt, info "paris-dht", by hmac alone
    assert Identity.from_seed(bytes(32)).dht_seed().hex() == hkdf(bytes(32), b"paris-dht").hex()


def hkdf(secret: bytes, info: bytes) -> bytes:
    import hmac

    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_signatures_are_ed25519_under_the_peer_s_own_key() -> None:
    signature = alice.sign(b"message")
    key = Ed25519PublicKey.from_public_bytes(peer_public_key(alice.peer))
    key.verify(signature, b"message")
    assert peer_public_key(alice.peer) == alice.public_key


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_seed_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(IdentityError):
        Identity.from_seed(bytes(size))


def test_an_exported_key_is_the_same_node(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(export_pem(alice))
    path.chmod(0o600)
    assert load_or_create(path)[0].peer == alice.peer


def test_pet_names_never_change_and_tell_people_apart() -> None:
    assert pet_name(Identity.from_seed(bytes(32)).peer) == "golden-crane-15"
    names = {pet_name(person(number).peer) for number in range(200)}
    assert len(names) >= 198
    for name in names:
        mood, animal, number = name.split("-")
        assert mood.isalpha()
        assert animal.isalpha()
        assert 10 <= int(number) <= 99
