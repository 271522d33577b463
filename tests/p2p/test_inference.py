import time
from dataclasses import replace

import msgpack
import pytest

from p2p.errors import DecodeError, LimitError, PeerError, SignatureError
from p2p.ids import RunId
from p2p.inference import (
    REFUSAL_CODES,
    Admitted,
    InferenceProgress,
    InferenceRefusal,
    InferenceReply,
    InferenceRequest,
    admit,
    open_reply,
    pack_message,
    pack_request,
    parse_message,
    parse_request,
    refusal_of,
)
from p2p.limits import (
    MAX_DEADLINE_S,
    MAX_GUIDANCE,
    MAX_IMAGE_REPLY_SIZE,
    MAX_IMAGES_PER_REQUEST,
    MAX_INFERENCE_PER_PEER,
    MAX_INFERENCE_QUEUE,
    MAX_PROMPT_BYTES,
    MAX_REASON_LENGTH,
    MAX_REQUEST_SIZE,
    MAX_SEED,
    MAX_STEPS,
)
from tests.support.people import NOW, RUN, alice, bob, cid, person, receipt, sealed

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"


def request(**changes: object) -> InferenceRequest:
    asked = InferenceRequest(
        run=RUN,
        prompt="a red boat at dawn",
        n=2,
        seed=7,
        strategy="top2",
        sampler="ab2",
        steps=30,
        guidance=2.5,
        deadline_s=60.0,
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


def reply(index: int = 0, **changes: object) -> InferenceReply:
    made = receipt(PNG, seed=7 + index)
    return InferenceReply(index, PNG, sealed(replace(made, **changes), alice))  # type: ignore[arg-type]


def test_a_request_comes_back_as_it_was() -> None:
    for asked in (request(), request(prompt="", guidance=0.0), request(prompt="ein Böötchen 🚤")):
        assert parse_request(pack_request(asked)) == asked


LIMITS = [
    ("n", 1, MAX_IMAGES_PER_REQUEST, 0, MAX_IMAGES_PER_REQUEST + 1),
    ("seed", 0, MAX_SEED, -1, MAX_SEED + 1),
    ("steps", 1, MAX_STEPS, 0, MAX_STEPS + 1),
    ("guidance", 0.0, MAX_GUIDANCE, -0.1, MAX_GUIDANCE + 0.1),
    ("deadline_s", 0.1, MAX_DEADLINE_S, 0.0, MAX_DEADLINE_S + 1),
    ("prompt", "", "é" * (MAX_PROMPT_BYTES // 2), "é" * (MAX_PROMPT_BYTES // 2) + "x", "x" * 2000),
]


@pytest.mark.parametrize(("field", "low", "high", "below", "above"), LIMITS)
def test_every_number_of_a_request_has_its_limits(
    field: str, low: object, high: object, below: object, above: object
) -> None:
    for fine in (low, high):
        assert getattr(parse_request(pack_request(request(**{field: fine}))), field) == fine
    for wrong in (below, above):
        fields = msgpack.unpackb(pack_request(request())) | {field: wrong}
        with pytest.raises(LimitError, match=field):
            parse_request(msgpack.packb(fields))


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 10**9},
        {"steps": 10**30 // 10**12},
        {"n": 2**63 - 1},
        {"prompt": "x" * 60_000},
        {"strategy": "everything"},
        {"strategy": "top0"},
        {"strategy": "top" + "9" * 4000},
        {"strategy": "random"},
        {"strategy": "all@best"},
        {"sampler": "x" * 50_000},
        {"guidance": 7},
        {"seed": 1.5},
        {"run": "elsewhere"},
        {"width": 65_000},
    ],
)
def test_abuse_is_refused_at_once(changes: dict[str, object]) -> None:
    data = msgpack.packb(msgpack.unpackb(pack_request(request())) | changes)
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        with pytest.raises((LimitError, DecodeError)):
            parse_request(data)
        took.append(time.perf_counter() - begun)
    assert min(took) < 0.01


def test_a_large_request_is_refused_unread() -> None:
    with pytest.raises(LimitError):
        parse_request(bytes(MAX_REQUEST_SIZE + 1))
    with pytest.raises(LimitError):
        parse_request(bytes(10_000_000))


@pytest.mark.parametrize(
    "message",
    [
        InferenceProgress(0, 30),
        InferenceProgress(1600, 1600),
        reply(),
        InferenceRefusal("busy", "16 requests are waiting"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_an_answer_comes_back_as_it_was(message: InferenceProgress) -> None:
    assert parse_message(pack_message(message)) == message


def fields_of(message: InferenceProgress | InferenceReply | InferenceRefusal) -> dict[str, object]:
    fields: dict[str, object] = msgpack.unpackb(pack_message(message))[1]
    return fields


@pytest.mark.parametrize(
    ("tag", "fields"),
    [
        ("progress", {"step": 31, "steps": 30}),
        ("progress", {"step": -1, "steps": 30}),
        ("progress", {"step": 0, "steps": 10**6}),
        ("progress", {"step": 0}),
        ("image", fields_of(reply()) | {"index": MAX_IMAGES_PER_REQUEST}),
        ("image", fields_of(reply()) | {"image": b"<svg/>"}),
        ("refusal", {"code": "shy", "reason": ""}),
        ("refusal", {"code": "busy", "reason": "x" * (MAX_REASON_LENGTH + 1)}),
        ("refusal", {"code": "busy", "reason": "\x1b[2J"}),
        ("surprise", {}),
        ("progress", []),
        (1, {}),
    ],
)
def test_an_answer_out_of_form_is_refused(tag: object, fields: object) -> None:
    with pytest.raises((DecodeError, LimitError)):
        parse_message(msgpack.packb([tag, fields]))


@pytest.mark.slow
def test_a_picture_fits_its_limit_and_no_larger_one_is_sent_or_read() -> None:
    room = MAX_IMAGE_REPLY_SIZE - len(pack_message(reply())) + len(PNG)
    fits = replace(reply(), image=PNG.ljust(room - 8, b"\0"))
    assert parse_message(pack_message(fits)) == fits
    with pytest.raises(LimitError):
        pack_message(replace(reply(), image=PNG.ljust(room + 8, b"\0")))
    with pytest.raises(LimitError):
        parse_message(bytes(MAX_IMAGE_REPLY_SIZE + 1))


# --- admission ------------------------------------------------------------------------------------


def test_a_peer_has_so_many_requests_at_a_time() -> None:
    some = [bob.peer] * (MAX_INFERENCE_PER_PEER - 1)
    assert admit(request(), bob.peer, serves=RUN, running=some[:1], waiting=some[1:]) == Admitted(
        request()
    )
    answer = admit(request(), bob.peer, serves=RUN, running=some[:1], waiting=[*some[1:], bob.peer])
    assert isinstance(answer, InferenceRefusal)
    assert answer.code == "too_many"
    other = admit(request(), alice.peer, serves=RUN, running=[], waiting=[*some, bob.peer])
    assert isinstance(other, Admitted)


def test_the_queue_has_an_end() -> None:
    crowd = [person(number).peer for number in range(MAX_INFERENCE_QUEUE)]
    assert isinstance(
        admit(request(), bob.peer, serves=RUN, running=crowd, waiting=crowd[1:]), Admitted
    )
    answer = admit(request(), bob.peer, serves=RUN, running=[], waiting=crowd)
    assert isinstance(answer, InferenceRefusal)
    assert answer.code == "busy"


def test_another_run_is_refused_by_name() -> None:
    other = RunId(cid("another run"))
    answer = admit(request(), bob.peer, serves=other, running=[], waiting=[])
    assert isinstance(answer, InferenceRefusal)
    assert answer.code == "wrong_run"
    assert other in answer.reason
    assert parse_message(pack_message(answer)) == answer


def test_whatever_was_wrong_can_be_said_to_the_peer() -> None:
    for text in ("steps: got 1e+09, allowed 1 to 100", "\x1b[31m\n" + "x" * 1000):
        answer = refusal_of(PeerError(text))
        assert answer.code in REFUSAL_CODES
        assert parse_message(pack_message(answer)) == answer


# --- what comes back ------------------------------------------------------------------------------


def test_a_picture_is_what_its_receipt_says() -> None:
    for index in range(2):
        opened = open_reply(reply(index), request(), peer=alice.peer, now=NOW)
        assert opened.record.seed == 7 + index


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"run": RunId(cid("another"))}, "run"),
        ({"image": cid("another picture")}, "image"),
        ({"seed": 8}, "seed"),
        ({"strategy": "all"}, "strategy"),
        ({"strategy": "top2@gauss"}, "strategy"),
        ({"strategy": "top2~1"}, "strategy"),
        ({"sampler": "euler"}, "sampler"),
        ({"steps": 3}, "steps"),
        ({"guidance": 1.0}, "guidance"),
    ],
)
def test_a_receipt_of_something_else_is_refused_by_name(
    changes: dict[str, object], field: str
) -> None:
    with pytest.raises(PeerError, match=field):
        open_reply(reply(**changes), request(), peer=alice.peer, now=NOW)  # type: ignore[arg-type]


def test_a_receipt_of_somebody_else_is_refused() -> None:
    with pytest.raises(PeerError, match="signed by"):
        open_reply(reply(), request(), peer=bob.peer, now=NOW)


def test_a_picture_nobody_asked_for_is_refused() -> None:
    with pytest.raises(PeerError, match="picture 2 of a request for 2"):
        open_reply(reply(2), request(), peer=alice.peer, now=NOW)


def test_a_changed_picture_or_receipt_is_refused() -> None:
    changed = replace(reply(), image=PNG + b"!")
    with pytest.raises(PeerError, match="image"):
        open_reply(changed, request(), peer=alice.peer, now=NOW)
    forged = bytearray(reply().receipt)
    forged[-1] ^= 1
    with pytest.raises(SignatureError):
        open_reply(replace(reply(), receipt=bytes(forged)), request(), peer=alice.peer, now=NOW)
