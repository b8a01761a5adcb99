"""The distribution memory: it recovers what there is, forgets no sound that is away, and walks into none of the known traps."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as BatchEM
from torch import Tensor

from streamsplit.audio.features import LogMel
from streamsplit.audio.files import find_recordings, read
from streamsplit.encoders.registry import resolve
from streamsplit.errors import ConfigError
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.pool import WindowPool
from tests.learning.memories import D, NaiveMemory, found, stream

RAW = MemorySettings(centred=False)
ESC50 = Path("../shared/data/esc50_dev")


def heard(z: Tensor, settings: MemorySettings | None = None, rows: int = 1) -> DistributionMemory:
    memory = DistributionMemory(settings)
    for part in z.split(rows):
        memory.update(part)
    return memory


def batch_likelihood(train: Tensor, test: Tensor, components: int, covariance: str = "diag") -> float:
    """Nats per held-out point of scikit-learn's EM over everything at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(
            BatchEM(components, covariance_type=covariance, random_state=0)
            .fit(train.numpy())
            .score(test.numpy())
        )


# It recovers what there is.


@pytest.mark.parametrize("kind", ["gaussian", "vmf"])
@pytest.mark.parametrize("centred", [True, False])
def test_one_pass_recovers_forty_sounds_as_well_as_batch_em(kind: str, centred: bool) -> None:
    made = stream(40, 5000)
    train, test = made.z[:4000], made.z[4000:]
    memory = heard(train, MemorySettings(kind=kind, centred=centred))  # type: ignore[arg-type]
    assert found(memory.means, memory.weights, made.centres - memory.centre * centred) == 40
    batch = batch_likelihood(
        memory.seen(train), memory.seen(test), 40, "diag" if kind == "gaussian" else "spherical"
    )
    assert float(-memory.novelty(test).mean()) > batch - 3.0


@pytest.mark.parametrize("step", [0.01, 0.02, 0.05])
def test_a_sticky_stream_forgets_no_sound(step: float) -> None:
    made = stream(40, 5000, stay=0.98)  # the last sound of forty was heard forty sounds of fifty windows ago
    memory = heard(made.z, replace(RAW, step=step))
    established = made.sound[:-512].unique()  # later ones may wait for the next refit
    assert len(established) >= 34
    assert found(memory.means, memory.weights, made.centres[established]) >= len(established) - 2
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    shuffled = heard(made.z[order], RAW)
    lost = memory.novelty(made.z[:-512]).mean() - shuffled.novelty(made.z[:-512]).mean()
    assert float(lost) < 6.0


def test_neighbours_that_are_alike_count_less() -> None:
    shuffled, sticky = (heard(stream(20, 1500, stay=stay).z, RAW) for stay in (0.0, 0.95))
    assert abs(float(shuffled.correlation)) < 0.15
    assert float(sticky.correlation) > 0.6
    assert sticky._independence < 0.3 < 0.7 < shuffled._independence


def test_copies_of_a_window_wear_a_component_down_less_where_neighbours_are_known_to_be_alike() -> None:
    moved = {}
    for stay in (0.0, 0.95):
        memory = heard(stream(20, 4000, stay=stay).z, replace(RAW, components=1, refit_every=10**9))
        before, copy = memory.means[0].clone(), stream(1, 1, seed=9).z
        memory.update(copy.expand(200, -1).clone())
        way = copy[0] - before
        moved[stay] = float((memory.means[0] - before) @ way / (way @ way))
    assert moved[0.0] > 0.55
    assert moved[0.95] < 0.45  # 0.87 if each counted as one: 1 - 0.99^200


def test_a_single_component_is_the_mean_and_variance_of_all() -> None:
    z = stream(6, 3000).z
    memory = heard(z, MemorySettings(components=1, centred=False, step=1e-6))
    assert torch.allclose(memory.means[0], z.mean(0), atol=2e-3)
    assert torch.allclose(memory.variances[0], z.var(0), rtol=0.1)


def test_sounds_that_come_later_are_found_by_components_that_had_nothing_to_do() -> None:
    early, late = stream(4, 1500, seed=1), stream(30, 4000, seed=2)
    z = torch.cat([early.z, late.z])
    memory = heard(z, RAW, rows=4)
    fixed = heard(z, replace(RAW, refit_every=10**9), rows=4)
    assert found(memory.means, memory.weights, late.centres) >= 28
    assert found(memory.means, memory.weights, early.centres) == 4
    assert found(fixed.means, fixed.weights, late.centres) < 20  # what revival is for


# The traps.


def test_components_stay_apart_where_means_of_one_sample_all_merge() -> None:
    made = stream(40, 1500)
    memory, naive = DistributionMemory(RAW), NaiveMemory(1 / D, around_mean=True, shared=True)
    for row in made.z:
        memory.update(row[None])
        naive.update(row)
    assert float(torch.pdist(naive.means).max()) < 0.1
    assert float(torch.pdist(memory.means[memory.weights > 0.002]).median()) > 1.0


def test_variance_is_that_of_the_sound_where_it_decays_around_the_sample() -> None:
    made = stream(20, 2000)
    truth = float((made.z - F.normalize(made.centres, dim=1)[made.sound]).square().mean())
    memory, naive = DistributionMemory(RAW), NaiveMemory(1 / D, around_mean=False, shared=True)
    for row in made.z:
        memory.update(row[None])
        naive.update(row)
    mine = float(memory.weights @ memory.variances.mean(1))
    assert mine == pytest.approx(truth, rel=0.15)
    assert float(naive.variances[naive.weights.argmax()].mean()) < 0.1 * truth


def test_the_first_windows_tell_sounds_apart_where_a_variance_of_a_half_does_not() -> None:
    made = stream(8, 64)
    assert float(DistributionMemory(RAW).variances.mean()) == pytest.approx(1 / D)
    memory, naive = DistributionMemory(RAW), NaiveMemory(0.5, around_mean=True, shared=False)
    for row in made.z:
        memory.update(row[None])
        naive.update(row)
    own = memory.mixture.log_joint(made.z).argmax(1)
    pure = sum(int(made.sound[own == c].bincount().max()) for c in own.unique())
    assert pure >= 60
    assert float(naive.weights.max()) > 0.9  # one takes all


@pytest.mark.parametrize("kind", ["gaussian", "vmf"])
def test_weights_do_not_collapse_on_a_varied_stream(kind: str) -> None:
    memory = heard(stream(80, 4000, stay=0.8, cone=1.5).z, MemorySettings(kind=kind))  # type: ignore[arg-type]
    assert memory.effective_components >= 40
    assert float(memory.weights.sum()) == pytest.approx(1.0, abs=1e-4)


def test_embeddings_in_a_cone_are_centred_and_renormalised() -> None:
    made = stream(40, 2000, cone=3.0)
    assert float(made.z.mean(0).norm()) > 0.85
    memory = heard(made.z, rows=8)
    seen = memory.seen(made.z)
    assert float(seen.mean(0).norm()) < 0.1
    assert torch.allclose(seen.norm(dim=1), torch.ones(2000), atol=1e-5)


def test_tempered_uncertainty_means_something_where_the_plain_posterior_is_always_certain() -> None:
    made = stream(40, 4000, deviation=0.05)
    memory, plain = (heard(made.z, MemorySettings(posterior_temperature=t), rows=4) for t in (32.0, 1.0))
    assert float(plain.uncertainty(made.z).quantile(0.95)) < 0.01
    clear = memory.uncertainty(F.normalize(made.centres, dim=1))
    between = memory.uncertainty(F.normalize(made.centres + made.centres.roll(1, 0), dim=1))
    nothing = memory.uncertainty(
        F.normalize(torch.randn(200, D, generator=torch.Generator().manual_seed(0)), dim=1)
    )
    assert float(clear.mean()) + 0.1 < float(between.mean()) < float(nothing.mean())
    for part in (clear, between, nothing):
        assert bool(((part >= 0) & (part <= 1)).all())


def test_novelty_tells_the_unheard_from_the_heard() -> None:
    made = stream(40, 3000)
    memory = heard(made.z[:2000], rows=4)
    strange = F.normalize(torch.randn(500, D, generator=torch.Generator().manual_seed(1)), dim=1)
    assert float(memory.novelty(strange).min()) > float(memory.novelty(made.z[2000:]).max())


def test_variances_have_a_floor_even_if_all_windows_are_one() -> None:
    same = stream(1, 1).z.expand(3000, -1)
    for kind in ("gaussian", "vmf"):
        for centred in (True, False):
            memory = heard(same, MemorySettings(kind=kind, centred=centred), rows=8)  # type: ignore[arg-type]
            for value in (memory.novelty(same[:4]), memory.uncertainty(same[:4]), *memory.tensors().values()):
                assert bool(torch.isfinite(value.float()).all())


# For good.


def test_a_hundred_thousand_windows_leave_it_finite_and_spread() -> None:
    """Ten looks, 10,000 windows apart: likelihood and components wander (by 3 nats and 3 components), they do not sink."""
    made = stream(120, 20_000, stay=0.9, cone=1.0)
    memory = DistributionMemory()
    likely, used = [], []
    for half in made.z.split(10_000) * 5:
        for part in half.split(8):
            memory.update(part)
        likely.append(float(-memory.novelty(made.z[:2000]).mean()))
        used.append(memory.effective_components)
    assert int(memory.count) == 100_000
    assert all(bool(torch.isfinite(buffer.float()).all()) for buffer in memory.tensors().values())
    assert float(memory.weights.sum()) == pytest.approx(1.0, abs=1e-4)
    assert min(used) >= 36
    assert sum(likely[-4:]) / 4 > sum(likely[1:5]) / 4 - 4.0  # it does not wear out


def test_its_size_does_not_grow_with_the_stream() -> None:
    short, long = heard(stream(10, 20).z), heard(stream(10, 3000).z, rows=8)
    assert [b.shape for b in short.tensors().values()] == [b.shape for b in long.tensors().values()]
    assert long.state_bytes() == 33_808 < 35_000


def test_nothing_is_drawn_from_or_left_in_the_callers_chance() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other = heard(stream(10, 900).z, rows=4), heard(stream(10, 900).z, rows=4)
    assert torch.equal(torch.rand(1), expected)
    assert all(
        torch.equal(a, b) for a, b in zip(one.tensors().values(), other.tensors().values(), strict=True)
    )


def test_a_rebuilt_memory_knows_nothing_of_what_it_was() -> None:
    used, fresh = heard(stream(10, 1000, seed=1).z, RAW, rows=8), DistributionMemory(RAW)
    new = stream(10, 128, seed=2)
    used.rebuild(new.z)
    fresh.rebuild(new.z)
    assert all(
        torch.equal(a, b) for a, b in zip(used.tensors().values(), fresh.tensors().values(), strict=True)
    )
    assert found(used.means, used.weights, new.centres) == 10
    used.update(stream(10, 1000, seed=2).z)
    assert found(used.means, used.weights, new.centres) == 10


# What learning asks of it.


def test_live_embeddings_know_their_own_quantile() -> None:
    made = stream(40, 3000)
    memory = heard(made.z[:2000], RAW, rows=8)
    directions = F.normalize(torch.randn(20, D, generator=torch.Generator().manual_seed(2)), dim=1)
    share = memory.cdf(made.z[2000:] @ directions.T, directions)
    ranks = torch.linspace(0.0005, 0.9995, 1000)
    assert float((share.sort(0).values - ranks[:, None]).abs().max()) < 0.1


def test_transport_moves_a_collapsed_cloud_towards_the_uniform_sphere() -> None:
    cloud = stream(30, 2000, cone=3.0).z
    memory = DistributionMemory(RAW)
    memory.rebuild(cloud[:1000])
    directions = F.normalize(torch.randn(50, D, generator=torch.Generator().manual_seed(2)), dim=1)
    x = cloud[1000:] @ directions.T
    target = memory.quantile(x, directions)
    assert target.mean(0).abs().max() < 0.01
    assert float(target.std(0).mean()) == pytest.approx(D**-0.5, rel=0.05)
    assert torch.equal(x.argsort(0), target.argsort(0)) or bool(
        (target.gather(0, x.argsort(0)).diff(dim=0) >= 0).all()
    )


@pytest.mark.parametrize("kind", ["gaussian", "vmf"])
def test_expected_negatives_are_those_of_an_endless_batch(kind: str) -> None:
    made = stream(30, 3000, deviation=0.05)
    memory = heard(made.z[:3000], MemorySettings(kind=kind, centred=False), rows=4)  # type: ignore[arg-type]
    z = made.z[:50].clone().requires_grad_()
    for temperature in (0.2, 0.5):
        real = torch.exp(z @ made.z[:3000].T / temperature).mean(1)
        closed = memory.expected_negative_mass(z, temperature)
        assert closed.tolist() == pytest.approx(real.tolist(), rel=0.15)
    others = memory.expected_negative_mass(z, 0.2, own_weight=0.0)
    assert bool((others < memory.expected_negative_mass(z, 0.2)).all())
    others.sum().backward()
    assert z.grad is not None
    assert float(z.grad.norm()) > 0


@pytest.mark.parametrize("kind", ["gaussian", "vmf"])
@pytest.mark.parametrize("centred", [True, False])
def test_sampled_negatives_could_have_been_heard(kind: str, centred: bool) -> None:
    made = stream(30, 3000, cone=1.0)
    memory = heard(made.z, MemorySettings(kind=kind, centred=centred), rows=4)  # type: ignore[arg-type]
    drawn = memory.sample_negatives(made.z[:3], 500, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 500, D)
    assert torch.allclose(drawn.norm(dim=2), torch.ones(3, 500), atol=1e-5)
    nearest = (drawn.flatten(0, 1) @ F.normalize(made.centres, dim=1).T).amax(1)
    assert float(nearest.median()) > 0.9
    again = memory.sample_negatives(made.z[:3], 500, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_boundary_aware_negatives_are_near_the_anchor_but_never_of_its_own_component() -> None:
    made = stream(30, 3000)
    memory = heard(made.z, RAW, rows=4)
    anchors = made.z[:20]
    own = memory.mixture.log_joint(anchors).argmax(1)
    plain = memory.sample_negatives(anchors, 300, torch.Generator().manual_seed(0))
    near = memory.sample_negatives(anchors, 300, torch.Generator().manual_seed(0), boundary_aware=True)
    component = memory.mixture.log_joint(near.flatten(0, 1)).argmax(1).view(20, 300)
    assert float((component == own[:, None]).float().mean()) < 0.01
    likeness = torch.einsum("bd,bnd->bn", anchors, near).mean(), torch.einsum("bd,bnd->bn", anchors, plain)
    foreign = likeness[1][likeness[1] < 0.7]
    assert float(likeness[0]) > float(foreign.mean()) + 0.03


# Boundaries.


def test_closed_forms_of_raw_embeddings_are_refused_by_a_centred_memory() -> None:
    memory, z = DistributionMemory(), stream(1, 2).z
    for ask in (
        lambda: memory.quantile(z[:, :1], z[:1]),
        lambda: memory.cdf(z[:, :1], z[:1]),
        lambda: memory.expected_negative_mass(z, 0.1),
    ):
        with pytest.raises(ValueError, match="raw embeddings"):
            ask()


@pytest.mark.parametrize(
    ("z", "told"),
    [
        (torch.ones(2, 3), r"expected embeddings \[B, 128\], got \[2, 3\]"),
        (torch.zeros(0, D), r"got \[0, 128\]"),
        (torch.full((1, D), float("nan")), "row 0: expected a finite embedding of norm 1, got norm nan"),
        (torch.cat([stream(1, 1).z, torch.ones(1, D)]), "row 1: .* got norm 11.3"),
    ],
)
def test_what_is_no_embedding_is_refused_and_leaves_no_trace(z: Tensor, told: str) -> None:
    memory = heard(stream(4, 30).z)
    before = [buffer.clone() for buffer in memory.tensors().values()]
    with pytest.raises(ValueError, match=told):
        memory.update(z)
    assert all(torch.equal(a, b) for a, b in zip(before, memory.tensors().values(), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "student"},
        {"components": 0},
        {"dim": 4},
        {"step": 0.0},
        {"step": float("nan")},
        {"reservoir_windows": 8},
        {"horizon_windows": 100},
        {"variance_floor": 0.0},
        {"posterior_temperature": 0.5},
        {"refit_every": 0},
        {"dead_share": 1.0},
    ],
)
def test_settings_name_what_is_wrong(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"memory {next(iter(changes))}: expected .* got"):
        MemorySettings(**changes)  # type: ignore[arg-type]


# On sound.


def test_made_sound_keeps_at_least_24_components_in_use(pool: WindowPool) -> None:
    encoder = resolve("compact").encoder
    with torch.no_grad():
        z = encoder.embeddings(pool.mel(torch.arange(len(pool))))["lite"]
    for kind in ("gaussian", "vmf"):
        memory = heard(z, MemorySettings(kind=kind))  # type: ignore[arg-type]
        assert memory.effective_components >= 24


@pytest.mark.data
@pytest.mark.skipif(not ESC50.exists(), reason="no ../shared/data/esc50_dev beside the checkout")
def test_a_real_stream_keeps_at_least_24_components_in_use() -> None:
    version = resolve("compact")
    log_mel, embeddings = LogMel(version.front_end), []
    for recording in find_recordings(ESC50)[::5]:
        samples = torch.from_numpy(read(recording.path, 16_000).copy())
        windows = samples[: len(samples) // 15_360 * 15_360].view(-1, 15_360)
        with torch.no_grad():
            embeddings.append(version.encoder.embeddings(log_mel(windows))["lite"])
    for kind in ("gaussian", "vmf"):
        memory = heard(torch.cat(embeddings), MemorySettings(kind=kind))  # type: ignore[arg-type]
        assert memory.effective_components >= 24
