import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.errors import DecodeError, LimitError
from p2p.inference import parse_request
from p2p.limits import MAX_AUTOGUIDANCE, MAX_CLUSTERS, MAX_LABEL
from p2p.routing import ROUTERS, STRATEGIES, Routing, parse_routing
from tests.support.people import RUN


def routings() -> st.SearchStrategy[Routing]:
    return st.builds(
        Routing,
        st.sampled_from(STRATEGIES),
        st.integers(1, MAX_CLUSTERS),
        st.floats(0, 1),
        st.none() | st.sampled_from(ROUTERS),
        st.integers(0, 1000 * int(MAX_AUTOGUIDANCE)).map(lambda thousandths: thousandths / 1000),
    )


@given(routings())
def test_a_label_says_the_same_to_who_reads_it(routing: Routing) -> None:
    label = routing.label()
    read = parse_routing(label)
    assert read.label() == label
    assert len(label) <= MAX_LABEL
    assert (read.router, read.autoguidance) == (routing.router, routing.autoguidance)
    if routing.strategy == "topk":
        assert {"top1": 1, "top2": 2}.get(read.strategy, read.top_k) == routing.top_k
    elif routing.strategy == "threshold":
        assert read.threshold == routing.threshold
    else:
        assert read.strategy == routing.strategy


@pytest.mark.parametrize("word", ["sticky", "top1", "top2", "all"])
def test_words_of_older_nodes_keep_their_meaning_and_their_bytes(word: str) -> None:
    assert parse_routing(word) == Routing(word)
    assert Routing(word).label() == word


def test_request_of_an_older_node_is_still_read() -> None:
    """Written out: the bytes that the first version of this program sent."""
    data = (
        b"\x89\xaadeadline_s\xcb@N\x00\x00\x00\x00\x00\x00\xa8guidance\xcb@\x10\x00\x00\x00\x00\x00\x00"
        b"\xa1n\x01\xa6prompt\xa5a bag\xa3run\xd9"
        + bytes([len(RUN)])
        + RUN.encode()
        + b"\xa7sampler\xa3ab2\xa4seed\x07\xa5steps\x0a\xa8strategy\xa6sticky"
    )
    assert parse_request(data).strategy == "sticky"


@pytest.mark.parametrize(
    "label",
    ["", "top", "topk", "threshold", "random", "top-1", "top+3", "top03", "top 3", "top3 ",
     "top1_0", "thresholdnan", "threshold1e-1", "threshold.5", "threshold0.50", "Sticky", "all@",
     "all@best", "all@gauss@gauss", "top3.0", "top\u0663", "sticky~", "sticky~0", "sticky~1.0",
     "sticky~x", "sticky~1@gauss", "sticky~1~1", "sticky~1e0"],
)  # fmt: skip
def test_what_is_no_label_is_refused(label: str) -> None:
    with pytest.raises((DecodeError, LimitError), match=r"strategy|router|threshold|top_k"):
        parse_routing(label)


@pytest.mark.parametrize(
    "label",
    ["top0", "top-5", f"top{MAX_CLUSTERS + 1}", "threshold-0.5", "threshold1.5", "x" * 65,
     "sticky~-1", "sticky~5.001", "sticky~nan", "sticky~0.1234"],
)  # fmt: skip
def test_numbers_of_a_label_are_bounded(label: str) -> None:
    with pytest.raises(LimitError, match=r"allowed|limit"):
        parse_routing(label)


def test_longest_numbers_are_refused_before_they_are_read() -> None:
    with pytest.raises(LimitError, match="characters"):
        parse_routing("top" + "9" * 100_000)
