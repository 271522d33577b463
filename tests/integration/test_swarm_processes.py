"""A swarm of real nodes: hivemind, libp2p, torch, each node a process with a home of its own."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.local_swarm import LocalNode, SwarmError, cli, wait_for
from tests.integration.conftest import BUDGET, SAVE_EVERY

pytestmark = pytest.mark.slow

Nodes = Callable[[str], LocalNode]


def founder(nodes: Nodes, tiny_run: tuple[str, Path], name: str = "one") -> LocalNode:
    """The node whose home holds the run; started."""
    run, home = tiny_run
    node = nodes(name)
    shutil.copytree(home, node.home)
    node.home.chmod(0o700)
    node.start(run=run)
    return node


def owners(nodes: list[LocalNode]) -> dict[int, str]:
    """Cluster -> node, as each owner itself says."""
    return {int(claim["cluster"]): node.name for node in nodes for claim in node.status()["claims"]}


def descendants(pid: int) -> set[int]:
    """Processes below one, by /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_swarm_claims_trains_survives_a_kill_and_draws(
    swarm: Nodes, tiny_run: tuple[str, Path], tmp_path: Path
) -> None:
    run, _ = tiny_run
    one = founder(swarm, tiny_run)
    address = one.wait_ready()["listening"][0]
    two = swarm("two")
    two.start(run=run, peers=[address])
    two.wait_ready()

    claimed = wait_for(lambda: _both(owners([one, two])), "a cluster each", 60)
    assert set(claimed) == {0, 1}

    victims_cluster = next(cluster for cluster, name in claimed.items() if name == "two")
    lost = wait_for(lambda: _replicated(one, victims_cluster), "a replicated checkpoint", 90)
    two.kill()

    heir = wait_for(lambda: _continued(one, lost), "the takeover", 90)
    assert heir["epoch"] >= 2
    wait_for(lambda: _all_complete(one), "complete experts", 120)

    three = swarm("three")
    three.start(run=run, peers=[address], flags=["--no-train", "--no-serve"])
    three.wait_ready()
    found = wait_for(lambda: _experts(three, 2), "the experts", 30)
    for expert in found:
        pulled = cli("experts", "pull", expert["cid"], home=three.home)
        assert pulled["bytes"] == expert["bytes"]
    drawn = cli(
        *("generate", "a tall bar", "-n", "2", "--seed", "3", "--where", "local"),
        *("-o", str(tmp_path / "bar.png")),
        home=three.home,
    )
    asked = cli(
        *("generate", "a tall bar", "-n", "2", "--seed", "3", "--where", "peer"),
        *("-o", str(tmp_path / "asked.png")),
        home=three.home,
    )
    assert asked["experts"][0]["peer"] == one.status()["peer_id"]
    for mine, theirs in zip(drawn["files"], asked["files"], strict=True):
        assert Path(mine).read_bytes() == Path(theirs).read_bytes()  # same seed, same picture

    shown = cli("experts", "show", found[0]["cid"], home=three.home)
    assert shown["local"] is True
    assert one.status()["peers"] >= 1
    _draws_by_a_router_of_its_own(three, tmp_path)


def _draws_by_a_router_of_its_own(node: LocalNode, tmp_path: Path) -> None:
    """Every router with a strategy that goes by it; the trained one from pulled experts alone."""

    def draw(strategy: str, router: str) -> dict[str, Any]:
        return cli(
            *("generate", "a tall bar", "--seed", "3", "--where", "local"),
            *("--strategy", strategy, "--router", router),
            *("-o", str(tmp_path / f"{strategy}-{router}.png")),
            home=node.home,
        )

    with pytest.raises(SwarmError, match="router train --kind synthetic"):
        draw("relay", "synthetic")
    size = ("--pictures", "100", "--samples", "256")
    trained = cli("router", "train", "--kind", "synthetic", *size, home=node.home)
    assert trained["clusters"] == [0, 1]
    for strategy in ("relay", "contrast", "top2"):
        for router in ("gauss", "synthetic"):
            drawn = draw(strategy, router)
            assert drawn["strategy"] == f"{strategy}@{router}"
            weights = [expert["weight"] for expert in drawn["experts"]]
            assert sum(weights) == pytest.approx(1.0)


def test_a_stopped_node_leaves_no_process_and_resumes_where_it_was(
    swarm: Nodes, tiny_run: tuple[str, Path]
) -> None:
    run, _ = tiny_run
    node = founder(swarm, tiny_run)
    node.wait_ready()
    wait_for(lambda: node.status()["training"], "training", 60)
    wait_for(lambda: (node.status()["training"] or {}).get("samples"), "a step", 60)
    assert node.process is not None
    children = descendants(node.process.pid)
    assert len(children) >= 3  # the swarm child, its p2pd, the trainer

    took_s = node.stop()
    assert node.process.returncode == 0
    assert took_s < 5.0
    gone = wait_for(lambda: not any(map(is_running, children)) or None, "the children to leave", 5)
    assert gone
    stopped_at = max(e["samples"] for e in node.events() if e["event"] == "published")

    node.start(run=run)
    node.wait_ready()
    started = wait_for(lambda: _second_training(node), "training again", 60)
    assert started["samples"] > stopped_at or started["cluster"] != node.events()[1]["cluster"]


def test_a_killed_trainer_loses_at_most_one_save_interval(
    swarm: Nodes, tiny_run: tuple[str, Path]
) -> None:
    node = founder(swarm, tiny_run)
    node.wait_ready()
    saved = wait_for(lambda: _published(node), "a checkpoint", 90)
    pid = wait_for(lambda: (node.status()["training"] or {}).get("pid"), "the trainer", 10)
    cluster = node.status()["training"]["cluster"]
    os.kill(int(pid), 9)

    again = wait_for(lambda: _second_training(node), "training again", 60)
    assert again["cluster"] == cluster
    assert again["samples"] >= saved["samples"] + 1 - SAVE_EVERY


def test_a_second_node_on_the_same_home_is_refused(
    swarm: Nodes, tiny_run: tuple[str, Path]
) -> None:
    node = founder(swarm, tiny_run)
    node.wait_ready()
    second = LocalNode(node.home)
    second.start(run=tiny_run[0])
    assert second.process is not None
    assert second.process.wait(30) == 7
    assert "already runs on this home" in node.home.with_suffix(".out").read_text()
    assert node.status()["peer_id"]


def _both(found: dict[int, str]) -> dict[int, str] | None:
    return found if len(found) == 2 and len(set(found.values())) == 2 else None


def _replicated(node: LocalNode, cluster: int) -> dict[str, Any] | None:
    for expert in node.get("/api/v1/experts")["experts"]:
        is_partial = 0 < expert["samples"] < BUDGET
        if expert["cluster"] == cluster and expert["replicas"] >= 2 and is_partial:
            return dict(expert)
    return None


def _continued(node: LocalNode, lost: dict[str, Any]) -> dict[str, Any] | None:
    for event in node.events():
        is_theirs = event["event"] == "continues" and event["owner"] == lost["owner"]
        if is_theirs and event["samples"] >= lost["samples"]:
            return event
    return None


def _all_complete(node: LocalNode) -> bool:
    return all(row["complete"] for row in node.get("/api/v1/clusters")["clusters"])


def _experts(node: LocalNode, count: int) -> list[dict[str, Any]] | None:
    best: dict[int, dict[str, Any]] = {}
    for expert in node.get("/api/v1/experts")["experts"]:
        best.setdefault(expert["cluster"], expert)
    return list(best.values()) if len(best) == count else None


def _published(node: LocalNode) -> dict[str, Any] | None:
    return next((event for event in node.events() if event["event"] == "published"), None)


def _second_training(node: LocalNode) -> dict[str, Any] | None:
    found = [event for event in node.events() if event["event"] == "training"]
    return found[1] if len(found) > 1 else None
