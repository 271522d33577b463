"""Which ways of drawing `bench_training` compares: every strategy with every router, and so on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from training.drawing.mixture import Strategy
from training.drawing.plan import RouterName, SampleOptions, Sampler
from training.sources.bundled import FASHION_CAPTIONS
from training_arms import ONE_CAPTION
from training_scores import Drawing

STEPS = 10
ROUTERS = (RouterName.GAUSS, RouterName.LEARNED, RouterName.SYNTHETIC)
MONOLITH, EQUAL_STEPS = "monolith, K x steps", "monolith, equal steps"
SELF_GUIDED = "monolith, autoguided"
AUTOGUIDANCE = 1.5
"""Distances of 1,500 pictures: sticky, K = 4, 2.9 at 1, 2.5 at 2; monolith 4.9 at 1, 4.2 at 2."""
GUIDANCES = (1.0, 2.0, 3.0, 4.0, 6.0)
SAMPLERS = (
    (Sampler.AB2, 6), (Sampler.AB2, 10), (Sampler.EULER, 10), (Sampler.EULER, 20),
    (Sampler.HEUN, 10), (Sampler.HEUN, 20),
)  # fmt: skip


@dataclass(frozen=True)
class Materials:
    """What there is to draw with.

    Args:
        runs: prepared runs by name: "1", "4", "text-4", ...
        checkpoints: by arm.
        summaries: of each run, by cluster.
        routers: folders by (K, seed) and kind.
    """

    runs: Mapping[str, Path]
    checkpoints: Mapping[str, Path]
    summaries: Mapping[str, Mapping[int, Path]]
    routers: Mapping[tuple[int, int], Mapping[RouterName, Path]]

    def monolith(self, label: str, arm: str, options: SampleOptions, **facts: object) -> Drawing:
        """One net that saw everything."""
        run = self.runs["text-1" if arm.startswith("text") else "1"]
        return Drawing(label, run, {0: self.checkpoints[arm]}, {}, {}, options, facts)

    def experts(self, label: str, run: str, options: SampleOptions, **facts: object) -> Drawing:
        """All experts of a run; its trained routers if it has any."""
        k, seed = int(run.rpartition("-")[2]), facts["seed"]
        name = run.replace("-", "") if run.startswith("text") else f"k{run}"
        found = {c: self.checkpoints[f"{name}.{c}-{seed}"] for c in range(k)}
        routers = {} if run.startswith("text") else self.routers[k, int(str(seed))]
        return Drawing(label, self.runs[run], found, self.summaries[run], routers, options, facts)


def strategies(materials: Materials, k: int, seed: int) -> list[Drawing]:
    """Both monoliths and every strategy of K experts, unconditional, at `STEPS` evaluations."""
    facts = {"table": "strategies", "clusters": k, "seed": seed}
    plain = _options(Strategy.TOP1, RouterName.CAPTION)
    drawings = [
        materials.monolith(MONOLITH, f"mono-{seed}", plain, **facts),
        materials.monolith(EQUAL_STEPS, f"wide{k}-{seed}", plain, **facts),
        materials.monolith(SELF_GUIDED, f"mono-{seed}", autoguided(plain), **facts),
    ]
    ways = [
        ("sticky", Strategy.STICKY, RouterName.CAPTION),
        ("relay, gauss", Strategy.RELAY, RouterName.GAUSS),
        ("contrast, gauss", Strategy.CONTRAST, RouterName.GAUSS),
    ]
    for shown, strategy in (("top-1", Strategy.TOP1), ("top-2", Strategy.TOP2)):
        ways += [(f"{shown}, {router}", strategy, router) for router in ROUTERS]
    ways += [
        ("full, gauss", Strategy.ALL, RouterName.GAUSS),
        ("random each step", Strategy.RANDOM, RouterName.CAPTION),
    ]
    drawings += [
        materials.experts(label, str(k), _options(strategy, router), **facts)
        for label, strategy, router in ways
    ]
    for label, strategy, router in ways[:2]:
        options = autoguided(_options(strategy, router))
        drawings.append(materials.experts(f"{label}, autoguided", str(k), options, **facts))
    return drawings


def samplers(materials: Materials, k: int, seed: int) -> list[Drawing]:
    """Sticky with every sampler at several numbers of evaluations."""
    drawings = []
    for sampler, steps in SAMPLERS:
        options = SampleOptions(
            Strategy.STICKY, sampler, steps, 1.0, focus=0.0, router=RouterName.CAPTION
        )
        facts = {"table": "samplers", "clusters": k, "seed": seed}
        drawings.append(materials.experts(f"{sampler} {steps}", str(k), options, **facts))
    return drawings


def captioned(materials: Materials, k: int, seed: int) -> list[Drawing]:
    """The captioned run: guidance swept, sticky against top-2, and the monolith."""
    drawings = []
    for guidance in GUIDANCES:
        facts = {"table": "captions", "clusters": k, "seed": seed, "guidance": guidance}
        ways = {
            "sticky by p(k | caption)": SampleOptions(
                Strategy.STICKY, Sampler.AB2, STEPS, guidance, router=RouterName.CAPTION
            ),
            "top-2, gauss": _options(Strategy.TOP2, RouterName.GAUSS, guidance),
        }
        sticky = ways["sticky by p(k | caption)"]
        ways["sticky, autoguided"] = replace(sticky, autoguidance=1.0)
        for label, options in ways.items():
            drawings.append(materials.experts(label, f"text-{k}", options, **facts))
        plain = _options(Strategy.TOP1, RouterName.CAPTION, guidance)
        drawings.append(materials.monolith(MONOLITH, f"text-mono-{seed}", plain, **facts))
    return drawings


def captions_of(drawing: Drawing, pictures: int, text_pictures: int) -> list[str]:
    """What to draw: the one caption, or every class as often, in turn."""
    if drawing.facts["table"] != "captions":
        return [ONE_CAPTION] * pictures
    classes = FASHION_CAPTIONS
    return [classes[i % len(classes)] for i in range(text_pictures)]


def autoguided(options: SampleOptions) -> SampleOptions:
    """The same, every net pushed away from its earlier self."""
    return replace(options, autoguidance=AUTOGUIDANCE)


def _options(strategy: Strategy, router: RouterName, guidance: float = 1.0) -> SampleOptions:
    """At the default sampler; no expert is left out because of a caption."""
    return SampleOptions(strategy, Sampler.AB2, STEPS, guidance, focus=0.0, router=router)
