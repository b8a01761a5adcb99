"""Every figure of a representation, and of an encoder's paths and floors, on one set of labelled clips.

A representation is a vector per window, [N, P]. Clips are judged by the mean over their windows, and by mean and deviation joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.encoders.split import SplitEncoder
from streamsplit.errors import ConfigError
from streamsplit.learning.clips import Clips
from streamsplit.learning.head_teacher import HeadTeacher
from streamsplit.learning.label_head import ComponentClasses
from streamsplit.learning.losses import alignment, effective_rank, uniformity
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.probe import Probed, linear_probe, nearest_neighbours_right, retrieve
from streamsplit.learning.uncertainty import (
    DisagreementHead,
    auroc,
    recovered,
    recovered_by_chance,
    reliability,
)

CHUNK = 64
MOST_LEARNED = 4000
"""Windows a probe of windows learns from: more changed its accuracy by less than a point and cost minutes."""
MOST_SPREAD = 4096
"""Windows whose pairwise distances uniformity is made of."""
OFFLOADED = 0.2
BINS = 10
"""Of predictions, to see how far they can be taken at their word."""
FIGURES: Mapping[str, str] = {
    "probe": "linear probe of clip means, %",
    "probe_mean_std": "linear probe of clip means and deviations, %",
    "probe_windows": "linear probe of single windows, %",
    "knn": "5 nearest neighbours of clip means, %",
    "precision_at_10": "of the 10 nearest clips of other folds, %",
    "mean_average_precision": "over clips, %",
    "uniformity": "0 collapsed, -3.9 uniform on the sphere",
    "alignment": "mean squared distance of neighbouring windows",
    "effective_rank": "directions in use",
    "mean_norm": "length of the mean of unit vectors: 1 is a single direction",
    "dimensions": "P",
}
SHARES = ("probe", "probe_mean_std", "probe_windows", "knn", "precision_at_10", "mean_average_precision")
"""Figures with a value per fold, 0..1."""

Report = Callable[[int, int], None]


@torch.no_grad()
def represent(encoder: SplitEncoder, clips: Clips, report: Report | None = None) -> dict[str, Tensor]:
    """Each path's embedding and pooled features of every window: "lite", "lite pooled"... -> [N, P].

    Args:
        encoder: in evaluation mode, on the CPU.
        clips: what to hear.
        report: called with (windows done, windows in all).

    Raises:
        ConfigError: the encoder hears through another front end than the clips were made with.
    """
    if encoder.front_end != clips.front_end:
        raise ConfigError(f"{encoder.name}: the clips were made with another front end than its own")
    parts: dict[str, list[Tensor]] = {}
    total = len(clips.clip)
    for begin in range(0, total, CHUNK):
        mel = clips.mel(slice(begin, begin + CHUNK))
        for path, z in encoder.embeddings(mel).items():
            parts.setdefault(path, []).append(z)
            parts.setdefault(f"{path} pooled", []).append(encoder.pooled(mel, path))
        if report:
            report(min(begin + CHUNK, total), total)
    return {name: torch.cat(part) for name, part in parts.items()}


def joined(features: Tensor, statistics: Tensor) -> Tensor:
    """Two representations side by side, each standardised and of equal weight: [N, P] and [N, Q] to [N, P + Q]."""
    return torch.cat([_standardised(part) / part.shape[1] ** 0.5 for part in (features, statistics)], dim=1)


def judge(features: Tensor, clips: Clips, windows: bool = True) -> dict[str, Any]:
    """Every figure of `FIGURES` of one representation.

    Args:
        features: [N, P], a vector per window.
        clips: whose windows they are.
        windows: also probe single windows, which takes longest.

    Returns:
        Those of SHARES as {"mean", "spread" (standard deviation over folds), "folds": {fold: share}}, the others as numbers. The
        spatial ones are of vectors scaled to unit length. Folds count alike in a mean, whatever their size.
    """
    labels, folds = clips.label_numbers, clips.fold_numbers
    mean = clips.mean(features)
    found = retrieve(mean, labels, folds)
    shares = {
        "probe": linear_probe(mean, labels, folds).right,
        "probe_mean_std": linear_probe(clips.mean_and_deviation(features), labels, folds).right,
        "knn": nearest_neighbours_right(mean, labels, folds),
        "precision_at_10": torch.where(found.asked, found.precision, torch.nan),
        "mean_average_precision": torch.where(found.asked, found.average_precision, torch.nan),
    }
    said: dict[str, Any] = {name: by_fold(values, folds) for name, values in shares.items()}
    if windows:
        said["probe_windows"] = by_fold(probe_windows(features, clips).right, folds[clips.clip])
    said |= space(features, clips)
    return said


def space(features: Tensor, clips: Clips) -> dict[str, float | None]:
    """How a representation fills its space: uniformity, alignment (None if no clip has two windows), effective rank, mean norm, P."""
    unit = F.normalize(features, dim=1)
    spread = unit[torch.linspace(0, len(unit) - 1, min(MOST_SPREAD, len(unit))).round().long()]
    first, second = clips.neighbours()
    near = round(float(alignment(unit[first], unit[second])), 4) if len(first) else None
    return {
        "uniformity": round(float(uniformity(spread)), 4),
        "alignment": near,
        "effective_rank": round(effective_rank(unit), 2),
        "mean_norm": round(float(unit.mean(0).norm()), 4),
        "dimensions": features.shape[1],
    }


def probe_windows(features: Tensor, clips: Clips) -> Probed:
    """A linear probe of single windows: [N, P]."""
    return linear_probe(
        features, clips.label_numbers[clips.clip], clips.fold_numbers[clips.clip], MOST_LEARNED
    )


def by_fold(values: Tensor, folds: Tensor) -> dict[str, Any]:
    """Mean per fold, and mean and spread over folds: [N] to {"mean", "spread", "folds"}; NaN counts nowhere."""
    own = {
        str(int(fold)): round(float(values[folds == fold].float().nanmean()), 4)
        for fold in torch.unique(folds)
    }
    known = torch.tensor(list(own.values()), dtype=torch.float64)
    return {"mean": round(float(known.mean()), 4), "spread": round(float(known.std()), 4), "folds": own}


def judge_uncertainty(representations: Mapping[str, Tensor], clips: Clips) -> dict[str, Any]:
    """How well signals tell which windows the device gets wrong, and what offloading by them recovers.

    Args:
        representations: of `represent`, of an encoder with the paths "lite" and "dense".
        clips: whose windows they are.

    Returns:
        lite, dense: share of windows that a probe of each path's embedding gets right; wrong_and_mended: windows that lite gets
        wrong and dense right, and spoilt: the reverse; signals: name -> {"auroc" of "lite is wrong", "recovered": of the gain of offloading
        everything, the part that the OFFLOADED most uncertain gain}, and "random" with what chance does and its "spread" over draws.
        heads: the same five where not probes decide what is right but the product's own classifier, a `LabelHead` for each path, taught on
        the other folds; None where a fold's windows make none. What a head does not know, classes of few windows and all beyond its
        most, it gets wrong. calibration_error: how far predictions of the disagreement are from the truth among windows
        of which alike is predicted (`reliability`), and disagreement: the true mean, to compare with. `auroc` is None where lite is always right or always wrong,
        `recovered` where there is nothing to gain.

    Signals: "disagreement" is the true 1 - cosine, which only the server knows; "predicted disagreement" is what a
    `DisagreementHead` taught on the other folds says; "entropy" and "margin" are of the probe on the lite embedding; "predicted
    change" is how likely a regression taught on the other folds holds it that dense's probe says another class than lite's; "head
    entropy" and "head margin" are those of the lite `LabelHead`, the one that a server pushes, and "component classes" the
    entropy of what it makes a memory's components stand for; "posterior entropy" is that memory's own, tempered (the paper's signal); "quiet"
    is minus the mean log-mel.
    """
    lite, dense = representations["lite"], representations["dense"]
    here, there = probe_windows(lite, clips), probe_windows(dense, clips)
    disagreement = (1.0 - (lite * dense).sum(1)).clamp(0.0, 2.0)
    folds = clips.fold_numbers[clips.clip]
    predicted = _predicted(lite, disagreement, folds)
    loudness = torch.from_numpy(clips.features).float().mean((1, 2))
    right, told = _on_a_device(lite, dense, clips, folds)
    signals = {
        "disagreement": disagreement,
        "predicted disagreement": predicted,
        "entropy": here.entropy,
        "margin": -here.margin,
        "predicted change": _change(lite, here, there, folds),
        **told,
        "quiet": -loudness,
    }
    return {
        **_offloading(here.right, there.right, signals, folds),
        "heads": _offloading(right["lite"], right["dense"], signals, folds) if right else None,
        "offloaded": OFFLOADED,
        "disagreement": round(float(disagreement.mean()), 4),
        "calibration_error": round(
            reliability(predicted.numpy(), disagreement.numpy(), min(BINS, len(lite))).error, 4
        ),
    }


def _offloading(here: Tensor, there: Tensor, signals: Mapping[str, Tensor], folds: Tensor) -> dict[str, Any]:
    """What is right on the device, `here`, and on the server, `there`, [N] bool; and which signals find the difference."""
    gain = there.double() - here.double()
    wrong = (~here).double()
    found = {
        name: {"auroc": _auroc(signal, wrong), "recovered": _recovered(signal, gain)}
        for name, signal in signals.items()
    }
    return {
        "lite": by_fold(here, folds),
        "dense": by_fold(there, folds),
        "wrong_and_mended": round(float((gain > 0).double().mean()), 4),
        "spoilt": round(float((gain < 0).double().mean()), 4),
        "signals": found | {"random": {"auroc": 0.5} | _by_chance(gain)},
    }


def spread_over(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over several judgements of one system (its seeds): figure -> {"mean", "spread", "seeds"}."""
    collected: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if value is None:
                continue
            collected.setdefault(name, []).append(
                float(value["mean"] if isinstance(value, Mapping) else value)
            )
    return {
        name: {
            "mean": round(float(torch.tensor(values).mean()), 4),
            "spread": round(float(torch.tensor(values).std()), 4) if len(values) > 1 else 0.0,
            "seeds": len(values),
        }
        for name, values in collected.items()
    }


def _standardised(features: Tensor) -> Tensor:
    return (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1e-6)


def _predicted(lite: Tensor, disagreement: Tensor, folds: Tensor) -> Tensor:
    """What a head taught on the other folds' windows expects of each window."""
    predicted = torch.zeros(len(lite))
    for fold in torch.unique(folds):
        inside = folds == fold
        learned = torch.nonzero(~inside).flatten()
        learned = learned[torch.linspace(0, len(learned) - 1, min(1000, len(learned))).round().long()]
        head = DisagreementHead(lite.shape[1])
        head.learn(lite[learned].double().numpy(), disagreement[learned].double().numpy())
        said = head.predict(lite[inside].double().numpy())
        predicted[inside] = torch.zeros(int(inside.sum())) if said is None else torch.from_numpy(said).float()
    return predicted


def _change(lite: Tensor, here: Probed, there: Probed, folds: Tensor) -> Tensor:
    """Probability, [N], that the two probes say different classes: what offloading can change at all.

    The regression's targets need no labels, but the probes whose verdicts they are have seen the judged fold's.
    """
    differ = here.verdict != there.verdict
    known = [differ[folds != fold] for fold in torch.unique(folds)]
    if not all(0 < int(one.sum()) < len(one) for one in known):
        return torch.zeros(len(lite))
    features = torch.cat([lite, here.entropy[:, None], here.margin[:, None]], dim=1)
    of_truth = torch.exp(-linear_probe(features, differ.long(), folds, MOST_LEARNED).loss)
    return torch.where(differ, of_truth, 1.0 - of_truth)


def _on_a_device(
    lite: Tensor, dense: Tensor, clips: Clips, folds: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Path -> [N], right by a head taught on the other folds (empty where one cannot be); and signals of a device that has heard those folds'
    windows and was pushed the lite path's head: name -> [N]."""
    names = [clips.labels[clip] for clip in clips.clip.tolist()]
    right = {path: torch.zeros(len(lite), dtype=torch.bool) for path in ("lite", "dense")}
    kinds = "head change", "head entropy", "head margin", "component classes", "posterior entropy"
    told = {name: torch.zeros(len(lite)) for name in kinds}
    for fold in torch.unique(folds):
        inside, others = torch.nonzero(folds == fold).flatten(), torch.nonzero(folds != fold).flatten()
        order = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))]
        memory = DistributionMemory(MemorySettings(dim=lite.shape[1]))
        teacher = HeadTeacher.of(lite.shape[1])
        for part in torch.split(order, CHUNK):
            memory.update(lite[part])
            labels = [names[window] for window in part.tolist()]
            teacher.learn(lite[part].numpy(), dense[part].numpy(), labels)
        told["posterior entropy"][inside] = memory.uncertainty(lite[inside])
        head, other = teacher.head(), teacher.dense.head()
        if head is None or other is None:
            right = {}
            continue
        stand_for = ComponentClasses(memory.settings.components, len(head.classes))
        for part in torch.split(order, CHUNK):
            said = head.judge(lite[part].numpy()).probabilities
            stand_for.learn(memory.posterior(lite[part]).numpy(), said)
        judged, beyond = head.judge(lite[inside].numpy()), other.judge(dense[inside].numpy())
        through = stand_for.entropy(memory.posterior(lite[inside]).numpy())
        for name, signal in (
            ("head change", judged.change),
            ("head entropy", judged.entropy),
            ("head margin", -judged.margin),
            ("component classes", through),
        ):
            if signal is not None:
                told[name][inside] = torch.from_numpy(signal).float()
        truths = [names[window] for window in inside.tolist()]
        for path, verdicts in (("lite", head.verdicts(judged)), ("dense", other.verdicts(beyond))):
            if path in right:
                right[path][inside] = torch.tensor([a == b for a, b in zip(verdicts, truths, strict=True)])
    return right, told


def _auroc(signal: Tensor, wrong: Tensor) -> float | None:
    if not 0 < float(wrong.sum()) < len(wrong):
        return None
    return round(auroc(signal.numpy(), wrong.numpy()), 4)


def _by_chance(gain: Tensor) -> dict[str, float | None]:
    if not float(gain.sum()) > 0:
        return {"recovered": None, "spread": None}
    mean, spread = recovered_by_chance(gain.numpy(), OFFLOADED)
    return {"recovered": round(mean, 4), "spread": round(spread, 4)}


def _recovered(signal: Tensor, gain: Tensor) -> float | None:
    if not float(gain.sum()) > 0:
        return None
    return round(recovered(signal.numpy(), gain.numpy(), OFFLOADED), 4)
