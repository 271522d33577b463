"""Simulated nodes around the pure claim core: a loop like the real one, and a network one can hurt.

Time is simulated; each node has its own clock error, its own view of the records, its own memory on
disk. Messages wait until they are delivered, twice, late, or never. Partitions cut views apart.
"""

from dataclasses import dataclass, field

from p2p.claims import (
    Action,
    ClusterView,
    HeldClaim,
    Hold,
    Idle,
    Me,
    Ownership,
    Progress,
    Publish,
    Renew,
    VerifiedCheckpoint,
    Yield,
    YieldBecause,
    decide,
    resolve_all,
    witness,
)
from p2p.codec import Verified, open_signed, seal
from p2p.identity import Identity
from p2p.ids import BlobId, ClusterId, PeerId
from p2p.records import Claim, ClaimPolicy, claim_key
from tests.support.people import NOW, RUN, cid

POLICY = ClaimPolicy(lease_s=30.0, renew_s=8.0, settle_s=1.0, patience_renewals=1000)
BUDGET = 1000
View = dict[tuple[ClusterId, PeerId], Verified[Claim]]


@dataclass
class Message:
    """One record on its way to one node."""

    to: int
    record: Verified[Claim]


@dataclass
class SimNode:
    """A node's volatile state, its disk, and what reached it."""

    index: int
    identity: Identity
    skew_s: float = 0.0
    is_up: bool = True
    held: dict[ClusterId, HeldClaim] = field(default_factory=dict)
    own: dict[ClusterId, Verified[Claim]] = field(default_factory=dict)
    resting: dict[ClusterId, float] = field(default_factory=dict)
    training: tuple[ClusterId, ...] = ()
    highest: dict[ClusterId, int] = field(default_factory=dict)
    """On disk: survives a crash."""
    view: View = field(default_factory=dict)
    checkpoints: dict[BlobId, VerifiedCheckpoint] = field(default_factory=dict)
    best: dict[ClusterId, tuple[BlobId, int, float]] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)


class Swarm:
    """All nodes, the time and the network between them."""

    def __init__(self, nodes: int, clusters: int) -> None:
        self.time = 0.0
        self.clusters = [ClusterId(k) for k in range(clusters)]
        self.nodes = [
            SimNode(index, Identity.from_seed(bytes([index + 1]) * 32)) for index in range(nodes)
        ]
        self.island = dict.fromkeys(range(nodes), 0)
        self.waiting: list[Message] = []

    # --- the network ---

    def deliver(self, message: Message) -> None:
        """Store as the DHT does: a later expiry replaces, an earlier one never does."""
        view = self.nodes[message.to].view
        record = message.record
        key = (record.record.cluster, record.owner)
        known = view.get(key)
        if known is None or known.record.expires_at < record.record.expires_at:
            view[key] = record

    def deliver_all(self) -> None:
        for message in self.waiting:
            self.deliver(message)
        self.waiting.clear()

    def send(self, node: SimNode, claim: Claim) -> bool:
        """Seal, open as every reader does, and put on its way; False if it is too late already."""
        key = claim_key(RUN, claim.cluster)
        envelope = seal(claim, node.identity, key=key, expires_at=claim.expires_at)
        record = open_signed(Claim, envelope, key=key, now=claim.issued_at)
        node.own[claim.cluster] = record
        for other in self.nodes:
            if self.island[other.index] == self.island[node.index]:
                self.waiting.append(Message(other.index, record))
        return True

    def heal(self) -> None:
        """One network again: everybody learns what anybody knew."""
        self.island = dict.fromkeys(self.island, 0)
        self.deliver_all()
        for node in self.nodes:  # a DHT drops what has expired
            node.view = {k: v for k, v in node.view.items() if v.record.expires_at > self.now(node)}
        everything = [record for node in self.nodes for record in node.view.values()]
        for node in self.nodes:
            for record in everything:
                self.deliver(Message(node.index, record))
            for other in self.nodes:
                self.learn(node, other)

    def learn(self, node: SimNode, other: SimNode) -> None:
        """Checkpoints spread by themselves; what is retrievable is verified."""
        node.checkpoints.update(other.checkpoints)
        for cluster, found in other.best.items():
            if found[1] > node.best.get(cluster, found)[1] or cluster not in node.best:
                node.best[cluster] = found

    # --- the nodes ---

    def now(self, node: SimNode) -> float:
        return NOW + self.time + node.skew_s

    def read(self, node: SimNode, *, now: float | None = None) -> dict[ClusterId, Ownership]:
        claims: dict[ClusterId, list[Verified[Claim]]] = {k: [] for k in self.clusters}
        for record in (*node.view.values(), *node.own.values()):
            claims[record.record.cluster].append(record)
        return resolve_all(
            claims,
            now=self.now(node) if now is None else now,
            policy=POLICY,
            progress=Progress(node.checkpoints),
            highest_epochs=node.highest,
        )

    def step(self, node: SimNode) -> dict[ClusterId, Ownership]:
        """One round of the loop in `p2p.claims`; returns its reading."""
        node.training, node.actions = (), []
        owned = self.read(node)
        for cluster, ownership in owned.items():
            node.highest[cluster] = ownership.highest_epoch
        views = [self._view(node, owned[cluster]) for cluster in self.clusters]
        while True:
            node.resting = {k: until for k, until in node.resting.items() if until > self.time}
            me = Me(
                peer=node.identity.peer,
                monotonic=self.time,
                held=tuple(node.held.values()),
                resting=frozenset(node.resting),
            )
            now = self.now(node)
            action = decide(views, me, run=RUN, now=now, policy=POLICY)
            node.actions.append(action)
            if self._act(node, action):
                told = witness(views, me, run=RUN, now=now, policy=POLICY)
                if told is not None and isinstance(action, Hold | Idle):
                    self.send(node, told)
                return owned

    def _act(self, node: SimNode, action: Action) -> bool:
        """Do it; True if the round ends with it."""
        match action:
            case Publish(claim):
                self.send(node, claim)
                node.held[claim.cluster] = HeldClaim.first(claim, at=self.time)
                return True
            case Renew(claim):
                self.send(node, claim)
                node.held[claim.cluster] = node.held[claim.cluster].renewed(claim, at=self.time)
                return False
            case Yield(cluster, because, release):
                del node.held[cluster]
                if release is not None:
                    self.send(node, release)
                if because is not YieldBecause.COMPLETE:
                    node.resting[cluster] = self.time + POLICY.lease_s
                return False
            case Hold(train):
                node.training = train
                for cluster in train:
                    node.held[cluster] = node.held[cluster].confirmed()
                return True
            case Idle():
                return True

    def _view(self, node: SimNode, ownership: Ownership) -> ClusterView:
        blob, samples, made_at = node.best.get(ownership.cluster, (None, 0, None))
        return ClusterView(ownership, blob, samples, samples >= BUDGET, made_at)

    def publish_checkpoint(self, node: SimNode, cluster: ClusterId, more: int) -> None:
        """Train on and publish; only one's own island can fetch it."""
        held = node.held[cluster]
        samples = max(held.samples, node.best.get(cluster, (None, 0, 0.0))[1]) + more
        blob = cid(f"{node.identity.peer} {cluster} {samples} {self.time}")
        node.held[cluster] = held.with_checkpoint(blob, samples)
        node.checkpoints[blob] = VerifiedCheckpoint(node.identity.peer, samples)
        node.best[cluster] = (blob, samples, self.now(node))
        for other in self.nodes:
            if self.island[other.index] == self.island[node.index]:
                self.learn(other, node)

    def crash(self, node: SimNode) -> None:
        """Everything but the disk is gone."""
        node.is_up = False
        node.held, node.own, node.resting, node.training = {}, {}, {}, ()

    def settle(self, leases: float = 2.0) -> None:
        """Let a healed network run until every lease has been renewed or has ended."""
        self.heal()
        until = self.time + leases * POLICY.lease_s
        while self.time < until:
            self.time += POLICY.settle_s * 2
            self.deliver_all()
            for node in self.nodes:
                if node.is_up:
                    self.step(node)
        self.deliver_all()
