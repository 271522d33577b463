"""How experts draw together, as one word on the wire and in receipts: `top2`, `sticky@gauss~0.5`.

    <sticky | relay | contrast | all | topK | thresholdT> [ @ ROUTER ] [ ~ AUTOGUIDANCE ]

with the router one of `ROUTERS`.

One label says strategy, its parameter, the router and autoguidance, so that requests and receipts
keep their fields: a node that does not know a label refuses it by name, and labels of older nodes
mean what they always did.  Each way has exactly one label, so that labels can be compared.  Pure.
"""

from dataclasses import dataclass, replace
from typing import Final

from p2p.errors import DecodeError, LimitError
from p2p.limits import MAX_AUTOGUIDANCE, MAX_CLUSTERS, MAX_LABEL

STRATEGIES: Final = ("sticky", "relay", "contrast", "top1", "top2", "topk", "threshold", "all")
"""What a person may say; `topk` and `threshold` take a number."""
ROUTERS: Final = ("caption", "gauss", "learned", "synthetic")
SAMPLERS: Final = ("ab2", "euler", "heun")
DEFAULT_TOP_K: Final = 2
DEFAULT_THRESHOLD: Final = 0.1

AUTOGUIDANCE_DIGITS: Final = 3
"""After the point: with more, labels would outgrow their limit."""

_TOP: Final = "top"
_THRESHOLD: Final = "threshold"


@dataclass(frozen=True, slots=True)
class Routing:
    """How experts are chosen, and joined.

    Attributes:
        strategy: one of `STRATEGIES`.
        top_k: how many experts `topk` asks.
        threshold: the least probability of an expert that `threshold` asks.
        router: one of `ROUTERS`; None leaves it to who draws.
        autoguidance: how far each expert is pushed away from its earlier self; 0 is not at all.

    Raises:
        DecodeError: for a name that is not known.
        LimitError: for a number out of range, or finer than `AUTOGUIDANCE_DIGITS`.
    """

    strategy: str = "sticky"
    top_k: int = DEFAULT_TOP_K
    threshold: float = DEFAULT_THRESHOLD
    router: str | None = None
    autoguidance: float = 0.0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise _unknown("strategy", self.strategy)
        if self.router is not None and self.router not in ROUTERS:
            raise _unknown("router", self.router)
        if not 1 <= self.top_k <= MAX_CLUSTERS:
            raise LimitError(f"top_k: got {self.top_k}, allowed 1 to {MAX_CLUSTERS}")
        if not 0 <= self.threshold <= 1:  # also false for NaN
            raise LimitError(f"threshold: got {self.threshold:.6g}, allowed 0 to 1")
        weight = self.autoguidance
        if not (0 <= weight <= MAX_AUTOGUIDANCE and round(weight, AUTOGUIDANCE_DIGITS) == weight):
            allowed = f"0 to {MAX_AUTOGUIDANCE:g} with {AUTOGUIDANCE_DIGITS} digits after the point"
            raise LimitError(f"autoguidance: got {weight:.6g}, allowed {allowed}")

    def label(self) -> str:
        """The one word for it; `parse_routing` reads it."""
        match self.strategy:
            case "topk":
                word = f"{_TOP}{self.top_k}"
            case "threshold":
                word = f"{_THRESHOLD}{float(self.threshold)!r}"
            case word:
                pass
        by = "" if self.router is None else f"@{self.router}"
        return f"{word}{by}~{self.autoguidance:g}" if self.autoguidance else f"{word}{by}"


def parse_routing(label: str) -> Routing:
    """Read a label.

    Raises:
        DecodeError: if it is none, or not written as `Routing.label` writes it.
        LimitError: if the number in it is out of range.
    """
    if len(label) > MAX_LABEL:
        raise LimitError(f"strategy: got {len(label)} characters, the limit is {MAX_LABEL}")
    choice, tilde, weight = label.partition("~")
    word, at, router = choice.partition("@")
    routing = _of_word(word, router if at else None)
    if tilde:
        routing = replace(routing, autoguidance=_number(weight, label))
    if routing.label() != label:
        raise _unknown("strategy", label)
    return routing


def _of_word(word: str, router: str | None) -> Routing:
    try:
        if word.startswith(_TOP) and word not in STRATEGIES:
            return Routing("topk", top_k=int(word.removeprefix(_TOP)), router=router)
        if word.startswith(_THRESHOLD):
            threshold = float(word.removeprefix(_THRESHOLD))
            return Routing("threshold", threshold=threshold, router=router)
    except ValueError as error:
        raise _unknown("strategy", word) from error
    return Routing(word, router=router)


def _number(text: str, label: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise _unknown("strategy", label) from error


def _unknown(name: str, value: str) -> DecodeError:
    known = (
        ROUTERS
        if name == "router"
        else ("sticky", "relay", "contrast", "all", "top<k>", "threshold<p>")
    )
    return DecodeError(f"{name}: got {value[:40]!r}, expected one of {', '.join(known)}")
