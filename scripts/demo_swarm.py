#!/usr/bin/env python3
"""A whole swarm on this machine, offline, on real data; leaves pictures and a scorecard.

Four nodes, each a process of its own with its own home and ports, find each other from one
address, claim a cluster each, train and publish. One owner is killed (SIGKILL) on the way: another
node takes its cluster over and goes on from its published checkpoint. A fifth node that trained
nothing then pulls router summaries and experts by CID, draws a captioned grid, and asks a peer for
one more picture. At last one of the four trains a LoRA on striped bags, which none of the
experts ever saw, and offers it, proved in zero knowledge; the fifth checks the proofs, buys it, and
draws without it and with it.

Leaves in demo-out/: grid.png, peer.png, lora.png, timeline.json, scorecard.json.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo_lora import play_lora
from demo_score import draw_and_score
from demo_story import Story
from local_swarm import LocalNode, SwarmError, cli, local_swarm, wait_for

NODES = 4
CLUSTERS = 4
LEASE_S = 15
SAMPLES = {"demo": 24_000, "quality": 64_000}
"""Per expert: the settings measured in the project's notes, 96k and 256k samples in all."""
LEARNING_RATE = {"demo": 4e-3, "quality": 2e-3}
KILL_AFTER = 0.3
"""Of the budget: then the victim dies, with its last checkpoint published and replicated."""
PATIENCE_S = 900.0


class Demo:
    """One run of the demo."""

    def __init__(self, node: Callable[[str], LocalNode], quality: str, out: Path) -> None:
        self._node = node
        self._quality = quality
        self._out = out
        self.story = Story()
        self.budget = SAMPLES[quality]
        self.nodes: dict[str, LocalNode] = {}
        self.run = ""
        self.takeover_s = 0.0

    def play(self) -> dict[str, Any]:
        """All of it; the scorecard."""
        with self.story.phase("start"):
            self._create_run()
            self._start_nodes()
            self._wait_for_claims()
        with self.story.phase("train"):
            victim, cluster = self._kill_an_owner()
            self._wait_for_takeover(victim, cluster)
            self._wait_for_experts()
        return self._draw()

    # --- the swarm -----------------------------------------------------------------------------
    def _create_run(self) -> None:
        first = self._node("node-1")
        created = cli(
            *("run", "create", "fashion", "--name", "demo", "--clusters", str(CLUSTERS)),
            *("--samples", str(self.budget), "--save-every", str(self.budget // 8)),
            *("--learning-rate", str(LEARNING_RATE[self._quality]), "--lease", str(LEASE_S)),
            home=first.home,
        )
        self.run = created["run"]
        sizes = created["cluster_sizes"]
        self.story.tell(
            f"run {self.run[:14]}…: {sum(sizes)} pictures in clusters of {sizes}, no labels used",
            "run created",
            run=self.run,
            cluster_sizes=sizes,
        )

    def _start_nodes(self) -> None:
        first = self._node("node-1")
        first.start(run=self.run)
        address = first.wait_ready()["listening"][0]
        for number in range(2, NODES + 1):
            self._node(f"node-{number}").start(run=self.run, peers=[address])
        for number in range(1, NODES + 1):
            node = self._node(f"node-{number}")
            status = node.wait_ready()
            self.nodes[status["peer_id"]] = node
            self.story.tell(
                f"{node.name} is {status['name']}",
                "started",
                node=node.name,
                peer=status["peer_id"],
            )

    def _wait_for_claims(self) -> None:
        def all_claimed() -> dict[int, str] | None:
            owners = self._owners()
            self.story.progress(f"claims: {self._claims_text(owners)}")
            is_spread = len(owners) == CLUSTERS and len(set(owners.values())) == NODES
            return owners if is_spread else None

        owners = wait_for(all_claimed, "each node to own one cluster", PATIENCE_S)
        self.story.end_progress()
        self.story.tell(f"claimed: {self._claims_text(owners)}", "all claimed", owners=owners)

    def _kill_an_owner(self) -> tuple[LocalNode, int]:
        """SIGKILL one owner, not the first node, once others hold its newest checkpoint."""

        def ripe() -> tuple[LocalNode, dict[str, Any]] | None:
            self._show_training()
            found = self._node("node-1").get("/api/v1/experts")["experts"]
            for expert in found:
                owner = self.nodes.get(expert["owner"])
                is_far = expert["samples"] >= KILL_AFTER * self.budget
                is_safe = expert["replicas"] >= 2 and expert["samples"] < 0.8 * self.budget
                if owner is not None and owner.name != "node-1" and is_far and is_safe:
                    return owner, expert
            return None

        victim, expert = wait_for(ripe, "a replicated checkpoint", PATIENCE_S)
        self.story.end_progress()
        victim.kill()
        cluster = int(expert["cluster"])
        self.story.tell(
            f"{victim.name} killed (SIGKILL) at {expert['samples']} samples of cluster {cluster}",
            "killed",
            node=victim.name,
            peer=expert["owner"],
            cluster=cluster,
            samples=expert["samples"],
            cid=expert["cid"],
            replicas=expert["replicas"],
        )
        return victim, cluster

    def _wait_for_takeover(self, victim: LocalNode, cluster: int) -> None:
        """Until another node continues the victim's cluster from what the victim published."""
        begun = time.time()
        theirs = {e["cid"]: e for e in victim.events() if e["event"] == "published"}

        def continued() -> tuple[LocalNode, dict[str, Any]] | None:
            self._show_training()
            for node in self.nodes.values():
                for event in node.events() if node is not victim else ():
                    if event["event"] == "continues" and event["cid"] in theirs:
                        return node, event
            return None

        heir, event = wait_for(continued, f"cluster {cluster} to be taken over", PATIENCE_S)
        self.story.end_progress()
        self.takeover_s = round(event["time"] - begun, 1)
        self.story.tell(
            f"{heir.name} took cluster {cluster} over with token {event['epoch']} and goes on from "
            f"{event['samples']} samples ({event['cid'][:14]}…)",
            "taken over",
            node=heir.name,
            cluster=cluster,
            epoch=event["epoch"],
            samples=event["samples"],
            cid=event["cid"],
        )

    def _wait_for_experts(self) -> None:
        def complete() -> list[dict[str, Any]] | None:
            self._show_training()
            clusters = self._node("node-1").get("/api/v1/clusters")["clusters"]
            return clusters if all(row["complete"] for row in clusters) else None

        wait_for(complete, "all experts to be complete", PATIENCE_S)
        self.story.end_progress()
        self.story.tell("all experts are complete", "complete")

    # --- the pictures --------------------------------------------------------------------------
    def _draw(self) -> dict[str, Any]:
        artist = self._node("node-5")
        address = self._node("node-1").status()["listening"][0]
        artist.start(run=self.run, peers=[address], flags=["--no-train", "--no-serve"])
        artist.wait_ready()
        self.story.tell("node-5 started; it has trained nothing", "started", node="node-5")
        found = wait_for(lambda: self._complete_experts(artist), "node-5 to find them", 60.0)
        for expert in found:
            pulled = cli("experts", "pull", expert["cid"], home=artist.home)
            self.story.tell(
                f"node-5 pulled expert {expert['cluster']} by its CID, {pulled['bytes']} bytes",
                "pulled",
                cid=expert["cid"],
                cluster=expert["cluster"],
            )
        score = draw_and_score(artist, self._out, self.story)
        score["lora"] = play_lora(self._node("node-1"), artist, self._out, self.story)
        return self._scorecard(found, score)

    def _complete_experts(self, node: LocalNode) -> list[dict[str, Any]] | None:
        best: dict[int, dict[str, Any]] = {}
        for expert in node.get("/api/v1/experts")["experts"]:
            best.setdefault(int(expert["cluster"]), expert)
        is_whole = len(best) == CLUSTERS and all(
            expert["samples"] >= self.budget for expert in best.values()
        )
        return list(best.values()) if is_whole else None

    def _scorecard(self, experts: list[dict[str, Any]], score: dict[str, Any]) -> dict[str, Any]:
        samples = sum(expert["samples"] for expert in experts)
        return {
            "nodes": NODES,
            "clusters": CLUSTERS,
            "coverage": len(experts) / CLUSTERS,
            "checkpoints": [
                {key: expert[key] for key in ("cluster", "cid", "bytes", "step")}
                for expert in experts
            ],
            "takeover_s": self.takeover_s,
            "samples": samples,
            "train_s": self.story.seconds("train"),
            **score,
            "total_s": round(time.time() - self.story.begun, 1),
        }

    # --- telling -------------------------------------------------------------------------------
    def _owners(self) -> dict[int, str]:
        """Cluster -> node, as each owner itself says."""
        owners: dict[int, str] = {}
        for node in self.nodes.values():
            for claim in node.status()["claims"]:
                owners[int(claim["cluster"])] = node.name
        return owners

    def _claims_text(self, owners: dict[int, str]) -> str:
        return "  ".join(f"{k}: {owners.get(k, '-')}" for k in range(CLUSTERS))

    def _show_training(self) -> None:
        clusters = self._node("node-1").get("/api/v1/clusters")["clusters"]
        parts = []
        for row in clusters:
            samples = max(row["samples"], self._live_samples(row["cluster"]))
            parts.append(f"{row['cluster']}: {100 * samples // self.budget}%")
        self.story.progress("training  " + "   ".join(parts))

    def _live_samples(self, cluster: int) -> int:
        for node in self.nodes.values():
            if node.process is None or node.process.poll() is not None:
                continue
            training = node.status()["training"]
            if training is not None and training["cluster"] == cluster:
                return int(training["samples"])
        return 0


def timeline(demo: Demo) -> list[dict[str, Any]]:
    """The demo's own events and those of every node's journal, in order of time."""
    names = {peer: node.name for peer, node in demo.nodes.items()}
    events = [e for e in demo.story.events if "at_s" in e]
    told = {"claimed", "training", "published", "continues", "completed", "yielded", "replicated"}
    for node in demo.nodes.values():
        for event in node.events():
            if event["event"] in told:
                at_s = round(event.pop("time") - demo.story.begun, 2)
                peer = event.pop("node")
                events.append({"at_s": at_s, "node": names[peer], "peer": peer, **event})
    return sorted(events, key=lambda event: float(event["at_s"]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quality", action="store_true", help="train 256k samples, not 96k")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="where results go")
    parser.add_argument("--keep", action="store_true", help="keep the nodes' homes and logs")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    homes = Path(tempfile.mkdtemp(prefix="paris-demo-"))
    is_good = False
    try:
        with local_swarm(homes) as node:
            demo = Demo(node, "quality" if arguments.quality else "demo", out)
            scorecard = demo.play()
            events = timeline(demo)
        (out / "timeline.json").write_text(json.dumps(events, indent=1) + "\n")
        (out / "scorecard.json").write_text(json.dumps(scorecard, indent=2) + "\n")
        print_scorecard(scorecard, out)
        is_good = True
    except SwarmError as error:
        print(f"demo failed: {error}\nthe nodes' homes and logs: {homes}", file=sys.stderr)
        return 1
    finally:
        if is_good and not arguments.keep:
            shutil.rmtree(homes, ignore_errors=True)
    return 0


def print_scorecard(card: dict[str, Any], out: Path) -> None:
    """The figures a person wants first."""
    print()
    print(f"caption accuracy   {card['caption_accuracy']:.3f}  ({card['judged']} pictures)")
    print(f"group accuracy     {card['group_accuracy']:.3f}")
    print(f"taken over in      {card['takeover_s']} s  (lease {LEASE_S} s)")
    print(f"trained            {card['samples']} samples in {card['train_s']} s")
    print(
        f"drawn in           {card['generate_s']} s; by a peer, one in {card['peer_generate_s']} s"
    )
    lora = card["lora"]
    print(
        f"LoRA               {lora['layers']} layers offered in {lora['offer_s']} s, checked in "
        f"{lora['proved_s']} s; loss {lora['base_loss']} -> {lora['measured_loss']} "
        f"(claimed {lora['claimed_loss']})"
    )
    print(f"all in all         {card['total_s']} s")
    print(f"look at            {out / 'grid.png'} and {out / 'lora.png'}")


if __name__ == "__main__":
    sys.exit(main())
