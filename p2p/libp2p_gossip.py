"""GossipSub of py-libp2p under our rules: three-valued verdicts, budgets, bounded delivery.

The order for a message of another peer: budget of the neighbour that hands it on, size, form and
topic, signature (py-libp2p's strict signing), budget of its author, our validator. Gossip is a
hint: what must be true is in signed DHT records.
"""
# mypy: disable-error-code="misc"

import math
import time
from collections import Counter
from typing import Any

import trio
from libp2p.exceptions import ValidationError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.score import ScoreParams, TopicScoreParams

from p2p import limits
from p2p.errors import DecodeError
from p2p.host import GossipMessage, TopicValidator, Verdict
from p2p.host_guards import Budgets, PublishBudget, Subscription, judge, open_subscription
from p2p.ids import PeerId, parse_peer_id
from p2p.libp2p_guards import FailureLog

PROTOCOL = "/meshsub/1.1.0"

_DEGREE = 6
_DEGREE_LOW = 4
_DEGREE_HIGH = 12
"""Mesh sizes of the GossipSub specification (v1.1)."""
_HEARTBEAT_S = 1
"""The specification's; py-libp2p's default is 120 s, in which a mesh never heals."""
_CONTROL_PER_PEER_PER_S = 20.0
"""Control RPCs; an honest peer sends about one per heartbeat and topic."""
_MAX_CONTROL_ENTRIES = 1000
"""Message ids and topics in one control RPC."""
_MAX_TRACKED_PEERS = 4096
_FLUSH_STEP_S = 0.01


def score_params() -> ScoreParams:
    """Scoring that is on: four rejected messages in a row silence a neighbour for ~10 s.

    py-libp2p ships it off (weights 0, thresholds -inf). Delivered messages earn a little, rejected
    ones cost much more; counters decay with every heartbeat. Addresses are not scored: the
    transport's gate already limits connections per address. Peer exchange is refused: it makes a
    node dial whatever a neighbour names.
    """
    return ScoreParams(
        p2_first_message_deliveries=TopicScoreParams(weight=0.5, cap=20.0, decay=0.9),
        p4_invalid_messages=TopicScoreParams(weight=10.0, cap=20.0, decay=0.97),
        p5_behavior_penalty_weight=1.0,
        p5_behavior_penalty_decay=0.9,
        p5_behavior_penalty_threshold=10.0,
        publish_threshold=-30.0,
        gossip_threshold=-20.0,
        graylist_threshold=-50.0,
        accept_px_threshold=math.inf,
    )


def open_router() -> "GuardedGossipSub":
    """The router with our parameters.

    Its own spam check is off: it runs after validators, counts a neighbour's forwarded messages as
    its own, and drops our own in silence. `GuardedPubsub` and `PublishBudget` do that work. The
    eclipse check wants three addresses in a mesh, which a LAN behind one address never has.
    """
    return GuardedGossipSub(
        protocols=[PROTOCOL],
        degree=_DEGREE,
        degree_low=_DEGREE_LOW,
        degree_high=_DEGREE_HIGH,
        heartbeat_interval=_HEARTBEAT_S,
        score_params=score_params(),
        adaptive_gossip_enabled=False,
        spam_protection_enabled=False,
        eclipse_protection_enabled=False,
    )


class _IgnoredError(Exception):
    """Carries the verdict IGNORE past py-libp2p, which knows only valid and invalid."""


class GuardedGossipSub(GossipSub):
    """A router that bounds what control messages may cost."""

    def __init__(self, **parameters: Any) -> None:  # noqa: ANN401
        super().__init__(**parameters)
        self._control = Budgets(
            rate_per_s=_CONTROL_PER_PEER_PER_S,
            burst=2 * _CONTROL_PER_PEER_PER_S,
            max_keys=_MAX_TRACKED_PEERS,
        )

    async def handle_rpc(self, rpc: Any, sender_peer_id: Any) -> None:  # noqa: ANN401
        """Handle the control part of an RPC, unless it is too much or too large."""
        control = rpc.control
        entries = (
            sum(1 + len(have.messageIDs) for have in control.ihave)
            + sum(1 + len(want.messageIDs) for want in control.iwant)
            + len(control.graft)
            + len(control.prune)
        )
        allowed = self._control.take(str(sender_peer_id), trio.current_time())
        if not allowed or entries > _MAX_CONTROL_ENTRIES:
            self.scorer.penalize_behavior(sender_peer_id, 1.0)
            return
        await super().handle_rpc(rpc, sender_peer_id)


class GuardedPubsub(Pubsub):
    """Pubsub that judges with our validators and delivers to our bounded channels."""

    def __init__(self, host: Any, router: GuardedGossipSub, *, counts: Counter[str]) -> None:  # noqa: ANN401
        super().__init__(host, router, strict_signing=True)
        # py-libp2p numbers messages from the second of its start: a node that restarts would reuse
        # numbers, and its messages would be dropped as seen, or punished as contradictory.
        self.counter = time.time_ns()
        self._counts = counts
        self._failures = FailureLog(counts)
        self._subscriptions: dict[str, Subscription] = {}
        self._writing = 0
        self._opening: set[Any] = set()
        self._publish_budget = PublishBudget()
        self._forwarders = Budgets(
            rate_per_s=limits.MAX_GOSSIP_PER_FORWARDER_PER_S,
            burst=limits.MAX_GOSSIP_PER_FORWARDER_PER_S,
            max_keys=_MAX_TRACKED_PEERS,
        )
        self._authors = Budgets(
            rate_per_s=2 * limits.MAX_GOSSIP_PER_PEER_PER_S,
            burst=4 * limits.MAX_GOSSIP_PER_PEER_PER_S,
            max_keys=_MAX_TRACKED_PEERS,
        )

    async def join(
        self, topic: str, validator: TopicValidator
    ) -> trio.MemoryReceiveChannel[GossipMessage]:
        """Join a topic and return the end that its accepted messages come out of."""
        if topic in self._subscriptions:
            raise ValueError(f"already subscribed to {topic!r}")
        if len(self._subscriptions) >= limits.MAX_GOSSIP_TOPICS:
            raise ValueError(f"already subscribed to {limits.MAX_GOSSIP_TOPICS} topics")
        subscription, receive = open_subscription(topic, validator)
        await self.rejoin(subscription)
        return receive

    async def rejoin(self, subscription: Subscription) -> None:
        """Join with a subscription that exists, after the stack was built anew."""
        self._subscriptions[subscription.topic] = subscription
        await super().subscribe(subscription.topic)

    def subscriptions(self) -> tuple[Subscription, ...]:
        """The topics joined."""
        return tuple(self._subscriptions.values())

    async def publish_checked(self, topic: str, data: bytes) -> None:
        """Publish; raises `LimitError` where py-libp2p would drop in silence."""
        self._publish_budget.check(topic, data, trio.current_time())
        await super().publish(topic, data)

    async def flush(self, timeout_s: float) -> None:
        """Wait until what was published has left our queues, or `timeout_s` have passed."""
        with trio.move_on_after(timeout_s):
            while self._writing or any(map(len, self.peer_queues.values())):  # noqa: ASYNC110
                await trio.sleep(_FLUSH_STEP_S)

    async def write_msg(self, stream: Any, rpc_msg: Any) -> bool:  # noqa: ANN401
        """Write one RPC to a neighbour."""
        self._writing += 1
        try:
            return bool(await super().write_msg(stream, rpc_msg))
        finally:
            self._writing -= 1

    async def _handle_new_peer(self, peer_id: Any) -> None:  # noqa: ANN401
        """Open our gossip stream to a peer: one, though two connections may announce it at once."""
        if peer_id in self._opening:
            return
        self._opening.add(peer_id)
        try:
            await super()._handle_new_peer(peer_id)
        finally:
            self._opening.discard(peer_id)

    async def handle_dead_peer_queue(self) -> None:
        """Forget peers whose gossip stream died with its connection.

        py-libp2p keeps a dead stream while another connection to the peer lives, as that of a peer
        that came back at once. What the peer subscribed to came over a stream of its own: kept.
        """
        async with self.dead_peer_receive_channel:
            self.event_handle_dead_peer_queue_started.set()
            async for peer_id in self.dead_peer_receive_channel:
                if peer_id in self.peers and not _is_dead(self.peers[peer_id]):
                    continue
                topics = [topic for topic, peers in self.peer_topics.items() if peer_id in peers]
                self._handle_dead_peer(peer_id)
                if self._peer_is_connected(peer_id):
                    for topic in topics:
                        self.peer_topics.setdefault(topic, set()).add(peer_id)

    async def push_msg(self, msg_forwarder: Any, msg: Any) -> None:  # noqa: ANN401
        """Take in one message; a peer's bad message is counted, never raised."""
        if msg_forwarder == self.my_id:
            await super().push_msg(msg_forwarder, msg)
            return
        if not self._forwarders.take(str(msg_forwarder), trio.current_time()):
            self._counts["gossip_refused_rate"] += 1
            return
        if len(msg.data) > limits.MAX_GOSSIP_SIZE or len(msg.topicIDs) != 1:
            self._blame(msg_forwarder, msg, "gossip_refused_form")
            return
        try:
            await super().push_msg(msg_forwarder, msg)
        except _IgnoredError:
            self._mark_msg_seen(msg)
        except Exception as error:  # noqa: BLE001 (the guard around the topic validator's caller)
            self._failures.note("gossip message", error)
            self._blame(msg_forwarder, msg, "gossip_refused_form")

    async def validate_msg(self, msg_forwarder: Any, msg: Any) -> None:  # noqa: ANN401
        """Judge a message whose signature holds.

        Replaces py-libp2p's own, whose cache outlives its list of seen messages: an author could
        send a second message under the number of an accepted one and skip the validator.
        """
        if msg_forwarder == self.my_id:
            return
        subscription = self._subscriptions.get(msg.topicIDs[0])
        if subscription is None:
            raise _IgnoredError
        try:
            author = _author(msg)
        except DecodeError as error:
            raise ValidationError(str(error)) from error
        if not self._authors.take(author, trio.current_time()):
            self._counts["gossip_refused_author_rate"] += 1
            raise _IgnoredError
        verdict = judge(subscription.validator, author, msg.data, self._counts)
        if verdict is Verdict.REJECT:
            raise ValidationError("rejected by the topic's rules")
        if verdict is Verdict.IGNORE:
            raise _IgnoredError

    def notify_subscriptions(self, publish_message: Any) -> None:  # noqa: ANN401
        """Deliver an accepted message of another node."""
        for topic in publish_message.topicIDs:
            subscription = self._subscriptions.get(topic)
            if subscription is None or ID(publish_message.from_id) == self.my_id:
                continue
            message = GossipMessage(topic, _author(publish_message), publish_message.data)
            if not subscription.deliver(message, self._counts):
                del self._subscriptions[topic]
                self.manager.run_task(self.unsubscribe, topic)

    def _blame(self, forwarder: Any, msg: Any, what: str) -> None:  # noqa: ANN401
        self._counts[what] += 1
        for topic in list(msg.topicIDs)[:1]:
            if topic in self._subscriptions:
                self.router.scorer.on_invalid_message(forwarder, topic)


def _is_dead(stream: Any) -> bool:  # noqa: ANN401
    """Whether a registered gossip stream's connection is gone."""
    return stream is not None and stream.muxed_conn.event_shutting_down.is_set()


def _author(msg: Any) -> PeerId:  # noqa: ANN401
    """Peer id of the key that signed a message.

    Raises:
        DecodeError: if it is not an Ed25519 key.
    """
    return parse_peer_id(ID(msg.from_id).to_base58())
