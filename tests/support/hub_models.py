"""Tiny pretrained parts in the layout of their repositories on the Hugging Face hub.

The networks are the libraries' own, with random weights, written by the `safetensors` library under
the names that the published files have: those of the versions they were published with.  Each
writer returns its network, to compare with.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.parts.hub import ModelPart
from training.parts.libraries import autoencoder_class, clip_text_classes, dinov2_classes

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WORDS = ("a disc", "two bars", "a red boat", "boats")
DINO_WIDTH = 32


def write_sd_vae(folder: Path, seed: int = 0) -> Any:
    """stabilityai/sd-vae-ft-mse: its config names no scaling factor, its attention is old."""
    settings = {
        "act_fn": "silu",
        "block_out_channels": [8, 8, 8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    net = _seeded(seed, lambda: autoencoder_class()(**settings))
    old = (
        (r"\.to_q\.", ".query."),
        (r"\.to_k\.", ".key."),
        (r"\.to_v\.", ".value."),
        (r"\.to_out\.0\.", ".proj_attn."),
    )
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2", **settings}
    _write(folder, config, "diffusion_pytorch_model", _renamed(net.state_dict(), old))
    return net


def write_dinov2(folder: Path, seed: int = 0) -> Any:
    """facebook/dinov2-large, 1 layer and 32 wide."""
    config_class, model_class = dinov2_classes()
    settings = {
        "hidden_size": DINO_WIDTH,
        "image_size": 56,
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0,
        "mlp_ratio": 2,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 14,
        "qkv_bias": True,
    }
    net = _seeded(seed, lambda: model_class(config_class(**settings)))
    old = (
        (r"attention\.q_proj\.", "attention.attention.query."),
        (r"attention\.k_proj\.", "attention.attention.key."),
        (r"attention\.v_proj\.", "attention.attention.value."),
        (r"attention\.o_proj\.", "attention.output.dense."),
    )
    config = {"architectures": ["Dinov2Model"], "torch_dtype": "float32", **settings}
    _write(folder, config, "model", _renamed(net.state_dict(), old))
    return net


def write_clip(folder: Path, seed: int = 0) -> Any:
    """openai/clip-vit-large-patch14, 1 layer of text; the picture half is there, and not used."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder / "tokenizer.json")
    config_class, model_class = clip_text_classes()
    text = {
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 512,  # what the published file says too; `text_config_dict` has the truth
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77,
        "num_attention_heads": 12,
        "num_hidden_layers": 1,
        "vocab_size": vocabulary,
    }
    truth = {"hidden_size": 768, "intermediate_size": 64}
    net = _seeded(seed, lambda: model_class(config_class(**{**text, **truth})))
    tensors = {_with_outer_name(name): tensor for name, tensor in net.state_dict().items()}
    tensors |= {
        "logit_scale": torch.tensor(2.6),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_projection.weight": torch.ones(4, 768),
        "vision_model.post_layernorm.bias": torch.zeros(4),
        "visual_projection.weight": torch.ones(4, 4),
    }
    config = {"model_type": "clip", "text_config": text, "text_config_dict": truth}
    _write(folder, config, "model", tensors)
    return net


WRITERS = {
    "sd-vae-ft-mse": write_sd_vae,
    "dinov2-vitl14": write_dinov2,
    "clip-vit-l14": write_clip,
}


def write_models(models: Path) -> Path:
    """A folder for models with every hub-backed part in it."""
    for name, write in WRITERS.items():
        write(models / name)
    return models


def write_cache(cache: Path, part: ModelPart, source: Path) -> Path:
    """A part in a local Hugging Face cache: links into a folder of blobs. Returns its snapshot."""
    home = cache / f"models--{part.repository.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    for folder in (home / "blobs", home / "refs", snapshot):
        folder.mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    for name in part.files:
        data = (source / name).read_bytes()
        blob = home / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


@contextmanager
def served_hub(repository: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub on this machine that holds one repository: its address, and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Silent."""

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            body, headers = _reply(repository, folder, path)
            self.send_response(200 if body is not None else 404)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if with_body and body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _reply(repository: str, folder: Path, path: str) -> tuple[bytes | None, dict[str, str]]:
    names = sorted(item.name for item in folder.iterdir())
    if path == f"/api/models/{repository}/revision/main":
        facts = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
        return json.dumps(facts).encode(), {"Content-Type": "application/json"}
    if path == f"/api/models/{repository}/tree/{COMMIT}":
        rows = [
            {"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": "0" * 40}
            for n in names
        ]
        return json.dumps(rows).encode(), {"Content-Type": "application/json"}
    prefix = f"/{repository}/resolve/{COMMIT}/"
    if path.startswith(prefix) and path.removeprefix(prefix) in names:
        data = (folder / path.removeprefix(prefix)).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return data, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
    return None, {}


def _seeded(seed: int, construct: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = construct()
        for parameter in net.parameters():  # biases too: those that start at zero hide mistakes
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval().requires_grad_(False)


def _renamed(
    tensors: Mapping[str, Tensor], renames: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        old = name
        for pattern, replacement in renames:
            old = re.sub(pattern, replacement, old)
        found[old] = tensor
    return found


def _with_outer_name(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _write(folder: Path, config: Mapping[str, Any], stem: str, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02a pickle, which must never be read")


def _write_tokenizer(path: Path) -> int:
    """CLIP's kind of tokenizer for a few words; returns the size of its vocabulary.

    Written down, not trained: the library's trainer numbers equally frequent pieces at random.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    first, last = "<|startoftext|>", "<|endoftext|>"
    vocabulary, merges = _pieces((first, last))
    tokenizer: Any = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=last, end_of_word_suffix="</w>")
    )
    tokenizer.add_special_tokens([first, last])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (last, tokenizer.token_to_id(last)),
        (first, tokenizer.token_to_id(first)),
        trim_offsets=False,
        add_prefix_space=False,
    )
    tokenizer.save(str(path))
    size: int = tokenizer.get_vocab_size()
    return size


def _pieces(marks: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Letters, letters that end a word, and each word of `WORDS` grown letter by letter."""
    words = sorted({word for line in WORDS for word in line.lower().split()})
    letters = sorted(set("".join(words)))
    pieces = [*marks, *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in words:
        rest = [*word[:-1], f"{word[-1]}</w>"]
        left = rest[0]
        for right in rest[1:]:
            merges.append((left, right))
            left += right
            pieces.append(left)
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}, list(
        dict.fromkeys(merges)
    )
