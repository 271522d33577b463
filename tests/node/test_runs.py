"""Which run a command is about."""

from pathlib import Path

import pytest

from node.config import Config
from node.errors import NodeError
from node.home import Home, prepare
from node.runs import builtin_run_id, run_meant
from node.state import open_state
from p2p.ids import RunId, blob_id

SAID, SET, BOUND = (RunId(blob_id(name)) for name in (b"said", b"set", b"bound"))


def test_run_said_goes_before_the_one_set_the_homes_and_the_built_in_one(tmp_path: Path) -> None:
    plain = Config(home=tmp_path)
    assert run_meant(plain, None) == builtin_run_id()
    assert not plain.paths.database.exists()  # looking makes nothing
    prepare(Home.at(tmp_path))
    with open_state(plain.paths.database) as state:
        state.bind_run(BOUND)
    assert run_meant(plain, None) == BOUND
    assert run_meant(Config(home=tmp_path, run=SET), None) == SET
    assert run_meant(Config(home=tmp_path, run=SET), SAID) == SAID
    with pytest.raises(NodeError, match="boats"):
        run_meant(plain, "boats")
