"""Keys of three small circuits, derived once a session; a few proofs made with them."""

import pytest

from tests.support.proofs import ShownAll, shared_keys, show_all
from verification.keys import KeyStore


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    return shared_keys(tmp_path_factory)


@pytest.fixture(scope="session")
def shown(keys: KeyStore) -> ShownAll:
    return show_all(keys)
