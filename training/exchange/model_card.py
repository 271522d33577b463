"""The README.md of an exported model: what it is, from whom, how to draw, and what is not known.

Only facts that are at hand are told; what is not is said to be unknown.  Captions and names come
from strangers' data and are escaped.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from training.experts.checkpoint import ExpertInfo
from training.run import RunFacts

COMMONEST: Final = 3
MAX_SHOWN: Final = 40
HUB_LICENSES: Final = (
    "apache-2.0", "mit", "openrail", "openrail++", "creativeml-openrail-m", "cc0-1.0",
    "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "unlicense",
)  # fmt: skip
"""Identifiers the hub knows; any other licence is written as "other" with its name."""


@dataclass(frozen=True, slots=True)
class CardExpert:
    """One expert of the card.

    Args:
        info: its `expert.json`.
        cid: of the checkpoint it came from; empty if it came from a folder.
        owner: peer id of who trained it last; empty if unknown.
        captions: caption -> pictures of its cluster, all that are known.
    """

    info: ExpertInfo
    cid: str
    owner: str
    captions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything a card tells.

    Args:
        run_id: CID of the run's manifest; empty if unknown.
        run: its `run.json`.
        run_digest: sha256 of it.
        experts: by cluster.
        parameters: of one expert.
        routers: which routers are in the folder, best first.
        has_text: whether the text encoder's weights are in the folder.
        parts: name of each file of a part -> sha256.
        license: as the user gave it; empty if not.
        data_license: likewise.
    """

    run_id: str
    run: RunFacts
    run_digest: str
    experts: tuple[CardExpert, ...]
    parameters: int
    routers: tuple[str, ...]
    has_text: bool
    parts: Mapping[str, str]
    license: str
    data_license: str


def model_card(facts: CardFacts) -> str:
    """Markdown with the YAML header that the hub reads."""
    sections = [
        _header(facts), _summary(facts), _drawing(facts), _experts(facts), _training(facts),
        _parts(facts), _licences(facts), _limits(facts),
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _header(facts: CardFacts) -> str:
    known = facts.license.lower() in HUB_LICENSES
    lines = ["---"]
    lines.append(
        f"license: {facts.license.lower() if known else 'other' if facts.license else 'unknown'}"
    )
    if facts.license and not known:
        lines.append(f"license_name: {json.dumps(facts.license)}")
    lines += [
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags:",
        *(f"- {tag}" for tag in ("diffusion", "decentralized", "multi-expert", "paris-node")),
        *sorted(
            {f"- {'flow-matching' if e.info.objective == 'fm' else 'ddpm'}" for e in facts.experts}
        ),
        f"paris_node_run: {json.dumps(facts.run_id or 'unknown')}",
        "---",
    ]
    return "\n".join(lines)


def _summary(facts: CardFacts) -> str:
    spec, count = facts.run.spec, len(facts.experts)
    colour = "grey" if spec.image_channels == 1 else "colour"
    return (
        f"# {_plain(spec.name)}: {count} expert{'s' if count != 1 else ''}\n\n"
        f"A text-to-image model made of {count} diffusion transformers ({_plain(spec.preset)}, "
        f"{facts.parameters:,} parameters each). Each was trained alone on one cluster of the "
        "data; no gradient was exchanged (the recipe of arXiv 2510.03434). It draws "
        f"{colour} pictures of {spec.image_size} x {spec.image_size} pixels."
    )


def _drawing(facts: CardFacts) -> str:
    spec = facts.run.spec
    arguments = ['"FOLDER"', "trust_remote_code=True"]
    notes = ["`FOLDER` is a local copy of this folder; `trust_remote_code` runs its `pipeline.py`."]
    if not facts.has_text:
        arguments.append("text_encoder=..., tokenizer=...")
        notes.append(f"The text encoder `{spec.text}` is not in the folder: pass it.")
    if spec.codec != "patch-pca":
        arguments.append("vae=...")
        notes.append(f"The autoencoder `{spec.codec}` is not in the folder: pass it.")
    routing = (
        '`routing="sticky"` (default) draws one expert per picture from p(cluster | prompt); '
        '`"top-1"`, `"top-2"` and `"full-ensemble"` choose at every step.'
        if "gauss" in facts.routers
        else '`routing="sticky"`, one expert per picture from p(cluster | prompt), is the only one '
        "here: the folder has no router that `pipeline.py` can read."
    )
    code = [
        "from diffusers import DiffusionPipeline",
        f"pipe = DiffusionPipeline.from_pretrained({', '.join(arguments)})",
        f'pipe({json.dumps(_example(facts))}, seed=7).images[0].save("picture.png")',
    ]
    trained = [name for name in facts.routers if name in ("learned", "synthetic")]
    if trained:
        routing += (
            f" The {trained[0]} router in `router/` has the tensors of the published one; "
            "`pipeline.py` does not read it, paris-node does."
        )
    return "\n".join(
        ["## Draw", "", "```python", *code, "```", "", " ".join(notes), routing, *_alone(facts)]
    )


def _alone(facts: CardFacts) -> list[str]:
    """How one expert is used without `pipeline.py`."""
    lines = [
        "",
        'One expert alone: `PixArtTransformer2DModel.from_pretrained("FOLDER/expert_0")`, asked'
        " with `timestep = 1000 t`, t from 1 (noise) to 0 (data). With"
        " `FlowMatchEulerDiscreteScheduler` pass `sigmas=numpy.linspace(1, 1 / N, N)`: its"
        " `set_timesteps(N)` wastes the last step.",
    ]
    noisy = [str(e.info.cluster) for e in facts.experts if e.info.objective != "fm"]
    if noisy:
        lines.append(
            f"Expert {', '.join(noisy)} predicts the noise of the variance-preserving path, not a"
            " velocity: with n = sqrt((1 - t)^2 + t^2), ask at x_t / n with"
            " `timestep = 1000 * 2 / pi * atan2(t, 1 - t)`; of its answer e the velocity is"
            " e - (x_t - t e) / (1 - t). Do not ask it above t = 0.85 (`pipe.velocity` does the"
            " conversion)."
        )
    return lines


def _experts(facts: CardFacts) -> str:
    lines = [
        "## Experts",
        "",
        "| expert | pictures | objective | samples seen | steps | loss | commonest captions |",
        "|---|---|---|---|---|---|---|",
    ]
    for expert in facts.experts:
        info = expert.info
        lines.append(
            f"| {info.cluster} | {facts.run.rows[info.cluster]:,} | {info.objective} "
            f"| {info.samples:,} | {info.step:,} | {info.loss:.4f} | {_captions(expert)} |"
        )
    lines += ["", "| expert | checkpoint | trained last by |", "|---|---|---|"]
    for expert in facts.experts:
        lines.append(f"| {expert.info.cluster} | {_code(expert.cid)} | {_code(expert.owner)} |")
    return "\n".join(lines)


def _training(facts: CardFacts) -> str:
    spec, train = facts.run.spec, facts.run.spec.train
    return "\n".join(
        [
            "## Training",
            "",
            f"- run {_code(facts.run_id)}, `run.json` sha256 `{facts.run_digest}`",
            f"- {sum(facts.run.rows):,} pictures in {spec.clusters} clusters: fine k-means "
            f"({facts.run.fine} centroids) on `{spec.extractor}` features, merged; "
            f"seed {spec.seed}",
            f"- AdamW, learning rate {train.learning_rate:g} after {train.warmup_steps} steps of "
            f"warm-up, cosine to {train.final_lr_fraction:.0%}, betas {train.beta1:g}, "
            f"{train.beta2:g}, weight decay {train.weight_decay:g}, batch {train.batch}",
            f"- averaged weights (EMA, at most {train.ema_decay:g}); captions dropped with "
            f"probability {train.caption_drop:g}; budget {train.budget_samples:,} samples "
            "an expert",
            "- settings as the run says; what each node really did is not proved",
        ]
    )


def _parts(facts: CardFacts) -> str:
    spec = facts.run.spec
    lines = [
        "## Parts",
        "",
        f"Codec `{spec.codec}`, text encoder `{spec.text}`, feature extractor `{spec.extractor}` "
        f"(for the clustering only), routers: {', '.join(facts.routers)}.",
        "",
        "| file | sha256 |",
        "|---|---|",
    ]
    return "\n".join(
        [*lines, *(f"| {name} | `{digest}` |" for name, digest in facts.parts.items())]
    )


def _licences(facts: CardFacts) -> str:
    lines = [
        "## Licences",
        "",
        f"- these weights: {_plain(facts.license) or 'unknown: ask whoever exported them'}",
        f"- training data: {_plain(facts.data_license) or 'unknown: it was not recorded'}",
    ]
    if facts.has_text:
        lines.append("- the text encoder in `text_encoder/` (all-MiniLM-L6-v2): Apache-2.0")
    return "\n".join(lines)


def _limits(facts: CardFacts) -> str:
    lines = [
        "## Not known",
        "",
        "- Quality was not measured on this export: no FID, no prompt accuracy, no judge.",
        "- Bias, memorised training pictures and unsafe output were not looked for; nothing is"
        " filtered.",
        "- Losses are smoothed training losses as each node reported them; losses of different"
        " clusters or objectives do not compare.",
        "- A prompt unlike all training captions goes to the clusters of those nearest to it, and"
        " may draw poorly.",
    ]
    behind = [e for e in facts.experts if e.info.samples < facts.run.spec.train.budget_samples]
    if behind:
        names = ", ".join(str(e.info.cluster) for e in behind)
        lines.append(f"- Not trained to the end of the budget: expert {names}.")
    return "\n".join(lines)


def _captions(expert: CardExpert) -> str:
    ranked = sorted(expert.captions.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{_plain(text)} ({n:,})" for text, n in ranked[:COMMONEST]) or "unknown"


def _example(facts: CardFacts) -> str:
    """The commonest caption: what the model draws best."""
    counts: dict[str, int] = {}
    for expert in facts.experts:
        for caption, number in expert.captions.items():
            counts[caption] = counts.get(caption, 0) + number
    best = max(sorted(counts), key=lambda caption: counts[caption], default="a picture")
    return best if len(best) <= MAX_SHOWN else "a picture"


def _code(text: str) -> str:
    return f"`{text}`" if re.fullmatch(r"[A-Za-z0-9]+", text) else "unknown"


def _plain(text: str) -> str:
    """One short line on which nothing is markup: Markdown's and HTML's signs are escaped."""
    line = " ".join(text.split())
    shown = line if len(line) <= MAX_SHOWN else f"{line[: MAX_SHOWN - 1]}…"
    return re.sub(r"([\\`*_{}\[\]<>()#!|~&])", r"\\\1", shown)
