"""Names a person can say for peer ids no person can read. Shown, never trusted."""

import hashlib
from typing import Final

from p2p.ids import PeerId

_MOODS: Final = tuple(
    """
    able amber apt azure balmy bold brave bright brisk calm candid civil clear clever cosy crisp
    curious dapper daring deft eager early easy fair fleet fond frank free fresh gentle glad golden
    grand green happy hardy honest humble jolly keen kind lively lucid lucky merry mild neat nimble
    noble patient plucky polite proud quick quiet ready rosy silver steady sunny swift tidy warm
    """.split()  # noqa: SIM905 - a list of words reads better than 64 quoted lines
)
_ANIMALS: Final = tuple(
    """
    auk badger bear beaver bee bison bobcat crane cricket curlew deer dolphin dove eagle egret elk
    falcon ferret finch fox gecko goose hare hawk heron ibis jay kestrel koala lark lemur lion lynx
    magpie marten mole moose newt ocelot osprey otter owl panda petrel plover puffin quail rabbit
    raven robin salmon seal shrew sparrow stork swan tapir tern toad trout turtle vole walrus wren
    """.split()  # noqa: SIM905
)


def pet_name(peer: PeerId) -> str:
    """A short name a person can say, like `brave-otter-41`: the same everywhere, not unique.

    Names can be ground for: show it beside the peer id, and never decide by it.
    """
    digest = hashlib.sha256(b"paris-pet-name" + peer.encode()).digest()
    number = int.from_bytes(digest[:8], "big")
    number, tail = divmod(number, 90)
    number, animal = divmod(number, len(_ANIMALS))
    return f"{_MOODS[number % len(_MOODS)]}-{_ANIMALS[animal]}-{10 + tail}"
