"""What a run and a training job are: model presets by name, settings, and the run's description.

Plain values with no torch in them; all of them go to JSON and come back strictly.
"""

from dataclasses import dataclass, field, replace
from typing import Final

from training.errors import ConfigError
from training.jsonio import added, from_json

SCHEMA: Final = 1
"""Version of every file this package writes."""

MAX_CLUSTERS: Final = 4096
MAX_THREADS: Final = 256
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 1024

OBJECTIVES: Final = ("fm", "ddpm-eps")
"""`fm`: the net predicts the straight path's velocity; `ddpm-eps`: the noise of a
variance-preserving path (converted to a velocity when it is asked for one)."""

TIMES: Final = ("logit-normal", "uniform")
"""How training times are drawn. `logit-normal` spends them in the middle of the path, which is the
hard part; source: arXiv 2403.03206, section 3.1 (m = 0, s = 1)."""

PRECISIONS: Final = ("auto", "fp32", "bf16")
"""Arithmetic of the net: weights, optimizer and average are float32 whatever it is."""

CLIP_NORM: Final = 1.0
"""Scarcely ever met by a healthy training of the bundled set: its norms are .43 to .82 after the
warm-up, 1.7 at most before. There the loss on training pictures, at fixed noise and times, is no
worse with it (.6399 and .6448, two seeds) than without (.6404, .6488); it is for the one batch in a
long training of a large net that would undo days."""

LatentShape = tuple[int, int, int]
"""Channels, height, width of one latent."""


@dataclass(frozen=True, slots=True)
class ModelPreset:
    """The size of an expert; the latent's shape and the text width come from the run.

    Args:
        name: how runs call it.
        heads: attention heads.
        head_dim: width of each head; heads * head_dim is the net's width.
        layers: transformer blocks.
        patch_size: latent pixels per token side.
    """

    name: str
    heads: int
    head_dim: int
    layers: int
    patch_size: int

    @property
    def width(self) -> int:
        """Features per token."""
        return self.heads * self.head_dim

    def net_config(self, latent: LatentShape, text_dim: int) -> dict[str, object]:
        """Keyword arguments of diffusers' `PixArtTransformer2DModel`.

        Args:
            latent: channels, height, width; height and width equal and divisible by the patch.
            text_dim: width of the text encoder's token states.

        Raises:
            ConfigError: if the latent does not fit the patch.
        """
        channels, height, width = latent
        if height != width or height % self.patch_size:
            raise ConfigError(
                f"preset {self.name} needs square latents divisible by {self.patch_size}, "
                f"got {height}x{width}"
            )
        return {
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_dim,
            "in_channels": channels,
            "out_channels": channels,
            "num_layers": self.layers,
            "cross_attention_dim": self.width,
            "sample_size": height,
            "patch_size": self.patch_size,
            "norm_type": "ada_norm_single",
            "num_embeds_ada_norm": 1000,
            "use_additional_conditions": False,
            "caption_channels": text_dim,
        }


PRESETS: Final = {
    preset.name: preset
    for preset in (
        ModelPreset("fashion-tiny", heads=4, head_dim=16, layers=4, patch_size=1),
        ModelPreset("tiny-cpu", heads=4, head_dim=32, layers=4, patch_size=2),
        ModelPreset("S/2", heads=6, head_dim=64, layers=12, patch_size=2),
        ModelPreset("B/2", heads=12, head_dim=64, layers=12, patch_size=2),
        ModelPreset("XL/2", heads=16, head_dim=72, layers=28, patch_size=2),
    )
}


def preset(name: str) -> ModelPreset:
    """The preset called `name`.

    Raises:
        ConfigError: naming the presets there are.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown model preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How one expert is trained; the defaults are the ones measured for the bundled set.

    Args:
        batch: samples per optimizer step.
        learning_rate: peak of the schedule.
        warmup_steps: linear ramp at the start (and, shorter, after a takeover).
        final_lr_fraction: the cosine ends at this part of the peak.
        beta1: AdamW.
        beta2: AdamW.
        weight_decay: AdamW.
        ema_decay: upper bound of the averaging, reached by min(ema_decay, (1 + n) / (10 + n)).
        caption_drop: probability of training a sample without its caption, for guidance.
        budget_samples: training ends here.
        save_samples: a checkpoint every so many samples, and one at the end.
        keep_saves: complete checkpoints kept on disk.
        seed: of weights, order, noise and times, together with the cluster's number.
        threads: of torch; one, because nodes share cores.
        device: a torch device name.
        objective: one of `OBJECTIVES`.
        times: one of `TIMES`.
        clip_norm: gradients are scaled down to this norm; 0 leaves them alone.
        precision: one of `PRECISIONS`; "auto" is chosen by what the device can do.
    """

    batch: int = 32
    learning_rate: float = 4e-3
    warmup_steps: int = 60
    final_lr_fraction: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01
    ema_decay: float = 0.998
    caption_drop: float = 0.1
    budget_samples: int = 24_000
    save_samples: int = 4_000
    keep_saves: int = 3
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    objective: str = "fm"
    times: str = "logit-normal"
    clip_norm: float = added(CLIP_NORM, before=0.0)
    precision: str = added("auto")

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("batch", "budget_samples", "save_samples", "keep_saves", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("final_lr_fraction", "beta1", "beta2", "ema_decay", "caption_drop"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"train: {name} must lie in 0..1, got {getattr(self, name)}")
        if self.learning_rate <= 0 or min(self.weight_decay, self.warmup_steps, self.clip_norm) < 0:
            raise ConfigError(
                "train: learning_rate must be positive; weight_decay, warmup_steps and clip_norm "
                "not negative"
            )
        if self.threads > MAX_THREADS:
            raise ConfigError(f"train: threads must be at most {MAX_THREADS}, got {self.threads}")
        if self.objective not in OBJECTIVES:
            raise ConfigError(
                f"train: unknown objective {self.objective!r}; known: {', '.join(OBJECTIVES)}"
            )
        if self.times not in TIMES:
            raise ConfigError(f"train: unknown times {self.times!r}; known: {', '.join(TIMES)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"train: unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}"
            )


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One collective training, as far as training is concerned; no data and no hashes.

    Args:
        name: for people.
        clusters: K, the number of experts.
        preset: name of a `ModelPreset`.
        codec: name of a latent codec (`training.parts.codecs`).
        extractor: name of a feature extractor (`training.parts.features`).
        text: name of a text encoder (`training.parts.text`).
        image_size: pixels a side, after padding or resizing.
        image_channels: 1 grey, 3 colour.
        seed: of the clustering.
        train: settings every expert of the run is trained with.
        objectives: of each expert by its cluster's number; empty: `train.objective` for all.
    """

    name: str
    clusters: int
    preset: str = "fashion-tiny"
    codec: str = "patch-pca"
    extractor: str = "pixel-pca"
    text: str = "minilm-l6"
    image_size: int = 32
    image_channels: int = 1
    seed: int = 0
    train: TrainConfig = field(default_factory=TrainConfig)
    objectives: tuple[str, ...] = added(())

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        preset(self.preset)
        if not self.name or len(self.name) > 64:
            raise ConfigError(f"run name must have 1 to 64 characters, got {len(self.name)}")
        if not 1 <= self.clusters <= MAX_CLUSTERS:
            raise ConfigError(f"clusters must lie in 1..{MAX_CLUSTERS}, got {self.clusters}")
        if not MIN_IMAGE_SIZE <= self.image_size <= MAX_IMAGE_SIZE:
            raise ConfigError(
                f"image_size must lie in {MIN_IMAGE_SIZE}..{MAX_IMAGE_SIZE}, got {self.image_size}"
            )
        if self.image_channels not in (1, 3):
            raise ConfigError(f"image_channels must be 1 or 3, got {self.image_channels}")
        if self.objectives and len(self.objectives) != self.clusters:
            raise ConfigError(f"{len(self.objectives)} objectives for {self.clusters} clusters")
        for cluster in range(len(self.objectives)):
            self.train_config(cluster)

    def train_config(self, cluster: int) -> TrainConfig:
        """The settings the expert of `cluster` is trained with.

        Raises:
            ConfigError: if its objective is not one of `OBJECTIVES`.
        """
        if not self.objectives:
            return self.train
        return replace(self.train, objective=self.objectives[cluster])


def run_spec_from_json(value: object) -> RunSpec:
    """A `RunSpec` read strictly.

    Raises:
        ConfigError: an unknown or missing key (named), a wrong type, an impossible value.
    """
    return from_json(RunSpec, value, "run spec")
