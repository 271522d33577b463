"""A program: bare hivemind, without our guards, told over stdin what to send to a victim.

Commands are JSON lines; bytes are hexadecimal, times may be "nan" or "inf". It must be a program:
hivemind and py-libp2p cannot live in one process.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections import Counter
from typing import Any

from p2p.dht.lean import prepare_hivemind

prepare_hivemind()

from hivemind.dht.node import DHTNode  # noqa: E402
from hivemind.dht.protocol import DHTProtocol  # noqa: E402
from hivemind.dht.routing import DHTID  # noqa: E402
from hivemind.p2p import P2P, P2PContext, PeerID  # noqa: E402
from hivemind.proto import dht_pb2  # noqa: E402

crafted: dict[bytes, dht_pb2.FindResult] = {}
told: Counter[bytes] = Counter()
settings = {"stall_s": 0.0}
honest_find = DHTProtocol.rpc_find


async def lying_find(
    self: DHTProtocol, request: dht_pb2.FindRequest, context: P2PContext
) -> dht_pb2.FindResponse:
    response = await honest_find(self, request, context)
    stall_s = float(settings["stall_s"])
    for key, result in zip(request.keys, response.results, strict=True):
        if key in crafted:
            result.CopyFrom(crafted[key])
            told[key] += 1
            await asyncio.sleep(stall_s)
    return response


async def perform(node: DHTNode, command: dict[str, Any]) -> dict[str, Any]:
    match command["op"]:
        case "store":
            request = dht_pb2.StoreRequest(
                keys=[bytes.fromhex(command["key"])] * int(command.get("times", 1)),
                subkeys=[bytes.fromhex(command["subkey"])] * int(command.get("times", 1)),
                values=[bytes.fromhex(command["value"])] * int(command.get("times", 1)),
                expiration_time=[float(command["expires_at"])] * int(command.get("times", 1)),
                in_cache=[command["in_cache"]] * int(command.get("times", 1)),
                peer=node.protocol.node_info,
            )
            stub = node.protocol.get_stub(PeerID.from_base58(command["victim"]))
            response = await stub.rpc_store(request, timeout=5)
            return {"stored": list(response.store_ok)}
        case "find":
            request = dht_pb2.FindRequest(
                keys=[bytes.fromhex(command["key"])] * int(command["times"]),
                peer=node.protocol.node_info,
            )
            stub = node.protocol.get_stub(PeerID.from_base58(command["victim"]))
            response = await stub.rpc_find(request, timeout=5)
            return {"found": [result.type for result in response.results]}
        case "answer":
            craft(command)
        case "stall":
            settings["stall_s"] = command["seconds"]
        case "told":
            return {"times": told[bytes.fromhex(command["key"])]}
        case "ping":
            met = await node.protocol.call_ping(PeerID.from_base58(command["victim"]))
            return {"met": met is not None}
        case other:
            return {"error": f"unknown {other}"}
    return {}


def craft(command: dict[str, Any]) -> None:
    """Prepare the lie that is told whenever somebody asks for a key."""
    result = dht_pb2.FindResult(
        type=command["type"],
        value=bytes.fromhex(command["value"]),
        expiration_time=float(command["expires_at"]),
    )
    for _ in range(command.get("neighbors", 0)):
        peer = b"\x00\x24\x08\x01\x12\x20" + os.urandom(32)
        result.nearest_peer_ids.append(peer)
        result.nearest_node_ids.append(DHTID.generate(source=peer).to_bytes())
    crafted[bytes.fromhex(command["key"])] = result


async def main(victim: str, is_listed: bool) -> None:
    DHTProtocol.rpc_find = lying_find
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        P2P._UNIX_SOCKET_PREFIX = f"/unix{folder}/"
        p2p = await P2P.create(
            initial_peers=[victim], host_maddrs=["/ip4/127.0.0.1/tcp/0"], nat_port_map=False
        )
        node_id = DHTID.generate(source=p2p.peer_id.to_bytes()) if is_listed else None
        node = await DHTNode.create(p2p=p2p, node_id=node_id)
        print(json.dumps({"peer": p2p.peer_id.to_base58()}), flush=True)  # noqa: T201
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            try:
                answer = await perform(node, json.loads(line))
            except Exception as error:  # noqa: BLE001  # the victim's refusal is what the test wants to see
                answer = {"error": repr(error)}
            print(json.dumps(answer), flush=True)  # noqa: T201
        await node.shutdown()
        await p2p.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] == "1"))
