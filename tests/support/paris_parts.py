"""Tiny vae/, text_encoder/ and tokenizer/ of a published folder, as the libraries write them."""

import json
from pathlib import Path


def write_parts(folder: Path) -> None:
    """CLIP's text half with one layer of the real width, and a four-level autoencoder."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        words = _vocabulary()
        config = CLIPTextConfig(
            vocab_size=len(words), hidden_size=768, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=12, max_position_embeddings=77, bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
        )  # fmt: skip
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
        blocks = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), down_block_types=blocks[0], up_block_types=blocks[1],
            layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
        ).save_pretrained(folder / "vae")  # fmt: skip
    place = folder / "tokenizer"
    place.mkdir()
    (place / "vocab.json").write_text(json.dumps(words))
    (place / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))


def _vocabulary() -> dict[str, int]:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(words)}
