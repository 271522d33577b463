"""Questions to a running node."""

import json
import os
from pathlib import Path

import pytest

from node.errors import ErrorCode
from node.home import Home, prepare
from tests.support.cli_run import Run, answer_of, refusal_of
from tests.support.fake_node import (
    CID,
    MISSING_CID,
    OTHER_PEER,
    PEER,
    FakeNode,
)


def test_status_in_json_has_the_promised_shape(run: Run, node: FakeNode) -> None:
    result = run("status", "--json")
    assert result.exit_code == 0
    answer = answer_of(result)
    assert answer.items() >= {"schema": 1, "peer_id": PEER, "name": "brave-otter-41"}.items()
    assert answer.keys() >= {"run", "listening", "peers", "claims", "training", "storage"}
    assert set(answer["claims"][0]) == {"cluster", "epoch", "expires_in_s"}
    assert set(answer["training"]) == {
        *("cluster", "step", "samples", "loss", "samples_per_s", "loss_by_t", "how")
    }
    assert set(answer["storage"]) == {"bytes", "quota"}


def test_status_for_people_fits_a_terminal_and_tells_all(run: Run, node: FakeNode) -> None:
    result = run("status")
    for part in ("brave-otter-41", "2 peers (2 direct", "cluster 3", "step 1,200", "31 MB of 21 GB",
                 "lease 3 min 31 s", "up 1 h 2 min", "212 samples/s"):  # fmt: skip
        assert part in result.stdout, result.stdout
    addresses: list[str] = []
    rest: list[str] = []
    for line in result.stdout.splitlines():
        (addresses if "/ip4/" in line else rest).append(line)  # an address is to be copied whole
    assert PEER in addresses[0]
    assert max(map(len, rest)) <= 80


def test_verbose_status_says_how_it_computes_and_the_loss_by_time(run: Run, node: FakeNode) -> None:
    assert "loss from t" not in run("status").stdout
    lines = run("status", "-v").stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("computes"))
    assert lines[at].endswith("fp32 because AMD EPYC has neither avx512_bf16 nor amx_bf16")
    assert lines[at + 1].strip() == "32 samples at a time, 1 process(es) of 1 thread(s) on cpu"
    assert lines[at + 2].split() == ["loss", "from", "t", *(f"0.{tenth}" for tenth in range(10))]
    assert lines[at + 3].split() == ["-", "1.75", *["0.50"] * 7, "0.25"]
    assert lines[at + 3].index("1.75") == lines[at + 2].index("0.1")  # each under its tenth
    assert max(map(len, lines[at : at + 4])) <= 80


def test_status_of_an_idle_node_says_so(run: Run, node: FakeNode) -> None:
    node.training = None
    assert "not training" in run("status").stdout
    assert answer_of(run("status", "--json"))["training"] is None


def test_status_of_a_newer_or_barer_node_is_still_printed(run: Run, node: FakeNode) -> None:
    node.status = lambda: {"schema": 2, "peer_id": PEER, "network": 7}  # type: ignore[method-assign]
    result = run("status")
    assert result.exit_code == 0
    assert "unnamed" in result.stdout


def test_status_watch_prints_until_its_time_is_up(run: Run, node: FakeNode) -> None:
    result = run("status", "--watch", "--every", "0.2", "--json", "--timeout", "0.5")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) in (2, 3)
    assert all(json.loads(line)["peer_id"] == PEER for line in lines)


def test_id_comes_from_the_running_node(run: Run, node: FakeNode) -> None:
    assert run("id").stdout.splitlines() == [PEER, "brave-otter-41"]
    assert answer_of(run("id", "--json"))["peer_id"] == PEER


def test_id_comes_from_the_key_when_nothing_runs(run: Run, home: Path) -> None:
    from p2p.identity import load_or_create

    assert run("id", "--json").exit_code == ErrorCode.NOT_FOUND.exit_code
    prepare(Home.at(home))
    identity, _ = load_or_create(home / "identity.key")
    assert run("id").stdout.splitlines()[0] == identity.peer
    (home / "identity.key").chmod(0o644)
    assert refusal_of(run("id", "--json"))[0] == ErrorCode.REFUSED.exit_code


def test_peers_and_clusters_are_told(run: Run, node: FakeNode) -> None:
    peers = run("peers")
    assert "calm-heron-07" in peers.stdout
    assert "24 ms" in peers.stdout
    assert "direct, dialled" in peers.stdout
    clusters = run("clusters")
    assert "brave-otter-41 (this node)" in clusters.stdout
    assert "60%" in clusters.stdout
    assert "most needs a node: 5" in clusters.stdout
    assert answer_of(run("clusters", "--json"))["next"] == 5
    assert len(answer_of(run("--json", "peers"))["peers"]) == 2


def test_no_peers_is_no_failure(run: Run, node: FakeNode) -> None:
    node.peers = lambda: {"schema": 1, "peers": []}  # type: ignore[method-assign]
    result = run("peers")
    assert result.exit_code == 0
    assert "No peers yet" in result.stdout


def test_experts_find_has_the_promised_shape_and_whole_cids(run: Run, node: FakeNode) -> None:
    answer = answer_of(run("experts", "find", "--json"))
    assert set(answer) == {"schema", "run", "clusters", "coverage", "experts"}
    assert set(answer["experts"][0]) == {
        "cluster", "owner", "epoch", "step", "samples", "cid", "bytes", "replicas", "seen_s"
    }  # fmt: skip
    text = run("experts", "find").stdout
    assert CID in text
    assert max(map(len, text.splitlines())) <= 80
    assert not answer_of(run("experts", "find", "--cluster", "5", "--json"))["experts"]
    assert "for this cluster" in run("experts", "find", "--cluster", "5").stdout


def test_experts_show_and_pull(run: Run, node: FakeNode) -> None:
    assert OTHER_PEER in run("experts", "show", CID).stdout
    assert "pulled 13 MB in 1.5 s" in run("experts", "pull", CID).stdout
    answer = answer_of(run("experts", "pull", CID, "--json"))
    assert answer == {"schema": 1, "cid": CID, "path": "/x", "bytes": 12_582_912, "seconds": 1.5}


@pytest.mark.parametrize("verb", ["show", "pull"])
def test_experts_refuse_what_is_no_cid_and_report_what_is_missing(
    run: Run, node: FakeNode, verb: str
) -> None:
    assert refusal_of(run("experts", verb, "../etc", "--json"))[0] == ErrorCode.USAGE.exit_code
    code, error = refusal_of(run("experts", verb, MISSING_CID, "--json"))
    assert (code, error["code"]) == (4, "not_found")


def test_stop_asks_and_waits_for_the_end(run: Run, node: FakeNode) -> None:
    result = run("stop")
    assert result.exit_code == 0
    assert node.is_stopped
    assert "Stopped in" in result.stdout
    assert run("stop").exit_code == ErrorCode.NOT_RUNNING.exit_code


def test_stop_of_a_node_that_does_not_end_times_out_with_a_way_out(
    run: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.cli.start.STOP_TIMEOUT_S", 0.1)
    node.on_stop = lambda: None
    code, error = refusal_of(run("stop", "--json"))
    assert code == 124
    assert error["fix"] == f"kill {os.getpid()}"
