"""How single made-up sounds are made: twelve kinds of event and six backgrounds, in numpy, from a random generator.

Each kind varies in pitch, tempo, timbre and length, and kinds overlap in all of these: a beep can be as high as a whistle, a knock as
dull as a footstep. They are for demonstrations and tests, where labels must be known and nothing may be downloaded; they do not stand
for real recordings in any measurement of quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
_Array = npt.NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class EventKind:
    """One kind of sound event.

    Attributes:
        shortest_s, longest_s: its length.
        make: (rng, samples n, sample rate in Hz) to [n], any scale.
    """

    shortest_s: float
    longest_s: float
    make: Callable[[Rng, int, int], _Array]


def make_event(kind: str, rng: Rng, samples: int, sample_rate_hz: int) -> Samples:
    """One event, [samples] float32 with peak 1 and faded ends (5 ms)."""
    sound = EVENTS[kind].make(rng, samples, sample_rate_hz)
    ramp = np.minimum(1.0, np.arange(1, samples + 1) / (0.005 * sample_rate_hz))
    sound = sound * ramp * ramp[::-1]
    return (sound / max(1e-9, float(np.abs(sound).max()))).astype(np.float32)


def make_background(kind: str, rng: Rng, samples: int, sample_rate_hz: int) -> Samples:
    """A stretch of background, [samples] float32 with root mean square 1."""
    sound = BACKGROUNDS[kind](rng, samples, sample_rate_hz)
    return (sound / max(1e-9, float(np.sqrt(np.mean(sound * sound))))).astype(np.float32)


# --- building blocks


def _seconds(n: int, rate: int) -> _Array:
    return np.arange(n) / rate


def _phase(hz: _Array, rate: int) -> _Array:
    """Phase in radians of an oscillator with the instantaneous frequency `hz` [n]."""
    return 2 * np.pi * np.cumsum(hz) / rate


def _added(n: int, parts: Iterable[_Array]) -> _Array:
    sound: _Array = np.zeros(n)
    for part in parts:
        sound = sound + part
    return sound


def _coloured(rng: Rng, n: int, rate: int, gain: Callable[[_Array], _Array]) -> _Array:
    """Gaussian noise [n] whose spectrum has the amplitude `gain(hz)`; deviation 1."""
    size = 1 << max(4, (n - 1).bit_length())
    hz = np.linspace(0.0, rate / 2, size // 2 + 1)
    white = rng.standard_normal((2, len(hz)))
    sound = np.fft.irfft((white[0] + 1j * white[1]) * gain(hz), size)[:n]
    return sound / max(1e-12, float(sound.std()))


def _band(low_hz: float, high_hz: float, order: int = 4) -> Callable[[_Array], _Array]:
    """A band-pass amplitude with Butterworth-like skirts."""
    return lambda hz: (
        1 / np.sqrt((1 + (low_hz / np.maximum(hz, 1.0)) ** order) * (1 + (hz / high_hz) ** order))
    )


def _slow(rng: Rng, n: int, rate: int, hz: float) -> _Array:
    """A smooth random curve [n], deviation about 1, that changes about `hz` times a second."""
    knots = max(4, int(n / rate * hz * 2) + 4)
    return np.interp(np.linspace(0, knots - 1, n), np.arange(knots), rng.standard_normal(knots))


def _ring(rng: Rng, n: int, rate: int, partials_hz: _Array, decays_s: _Array, loudness: _Array) -> _Array:
    """Damped sines struck at sample 0: [n]."""
    t = _seconds(n, rate)
    sound = np.zeros(n)
    for hz, decay_s, gain in zip(partials_hz, decays_s, loudness, strict=True):
        if hz < 0.48 * rate:
            heard = min(n, int(8 * decay_s * rate) + 1)
            part = t[:heard]
            sound[:heard] += (
                gain * np.exp(-part / decay_s) * np.sin(2 * np.pi * hz * part + rng.uniform(0, 6.28))
            )
    return sound


def _train(n: int, starts: _Array, make: Callable[[int], _Array]) -> _Array:
    """Adds `make(samples left)` at each start (samples)."""
    sound = np.zeros(n)
    for start in starts.astype(int).tolist():
        if start < n:
            piece = make(n - start)
            sound[start : start + len(piece)] += piece
    return sound


def _voice(
    rng: Rng, n: int, rate: int, pitch_hz: _Array, formants_hz: _Array, harmonics: int, rough: float
) -> _Array:
    """Harmonics of `pitch_hz` [n] under resonances `formants_hz` [count, n], with a share of breath noise."""
    phase = _phase(pitch_hz, rate)
    sound = np.zeros(n)
    for number in range(1, harmonics + 1):
        hz = number * pitch_hz
        gain = (
            sum(1 / (1 + ((hz - centre) / (60 + 0.09 * centre)) ** 2) for centre in formants_hz) / number**0.4
        )
        sound += np.where(hz < 0.48 * rate, gain, 0.0) * np.sin(number * phase)
    breath = _coloured(rng, n, rate, _band(0.6 * float(formants_hz.mean()), 3 * float(formants_hz.mean())))
    return sound / max(1e-9, float(sound.std())) + rough * breath


# --- events


def _bark(rng: Rng, n: int, rate: int) -> _Array:
    base_hz, spacing_s, length_s = rng.uniform(250, 620), rng.uniform(0.28, 0.6), rng.uniform(0.11, 0.22)
    formants_hz = np.array([[rng.uniform(700, 1_100)], [rng.uniform(1_500, 2_300)]])

    def one(left: int) -> _Array:
        size = min(left, int(length_s * rate * rng.uniform(0.85, 1.2)))
        t = np.linspace(0, 1, size)
        pitch_hz = (
            base_hz * rng.uniform(0.92, 1.08) * (1 + 0.5 * np.sin(np.pi * np.minimum(1, 1.6 * t)) - 0.35 * t)
        )
        return (
            _voice(rng, size, rate, pitch_hz, formants_hz, 14, 0.5) * np.minimum(1, 12 * t) * np.exp(-3.5 * t)
        )

    return _train(n, np.arange(0, n, spacing_s * rate) * rng.uniform(0.97, 1.03), one)


def _chirp(rng: Rng, n: int, rate: int) -> _Array:
    centre_hz, swing, spacing_s = rng.uniform(2_300, 5_200), rng.uniform(0.08, 0.35), rng.uniform(0.12, 0.4)
    length_s, shape, sign = rng.uniform(0.05, 0.14), rng.uniform(0.5, 2.5), rng.choice([-1, 1])

    def one(left: int) -> _Array:
        size = min(left, int(length_s * rate * rng.uniform(0.8, 1.2)))
        t = np.linspace(0, 1, size)
        hz = centre_hz * rng.uniform(0.95, 1.05) * (1 + sign * swing * np.cos(np.pi * shape * t))
        phase = _phase(np.minimum(hz, 0.45 * rate), rate)
        return np.sin(np.pi * t) ** 1.5 * (np.sin(phase) + 0.15 * np.sin(2 * phase))

    return _train(n, np.cumsum(rng.uniform(0.7, 1.4, int(n / rate / spacing_s) + 1)) * spacing_s * rate, one)


def _siren(rng: Rng, n: int, rate: int) -> _Array:
    low_hz, octaves, sweep_hz = rng.uniform(420, 800), rng.uniform(0.5, 1.3), rng.uniform(0.2, 1.6)
    wave = np.sin(2 * np.pi * sweep_hz * _seconds(n, rate) + rng.uniform(0, 6.28))
    if rng.random() < 0.4:  # two tones instead of a wail
        wave = np.tanh(12 * wave)
    phase = _phase(low_hz * 2 ** (octaves * (0.5 + 0.5 * wave)), rate)
    return _added(n, (rng.uniform(0.3, 1) / k * np.sin(k * phase) for k in range(1, 6)))


def _knock(rng: Rng, n: int, rate: int) -> _Array:
    partials_hz = rng.uniform(110, 260) * np.array(
        [1.0, rng.uniform(1.9, 2.4), rng.uniform(3.2, 4.1), rng.uniform(5, 7)]
    )
    decays_s, spacing_s = rng.uniform(0.012, 0.035) * np.array([1.6, 1.2, 0.8, 0.4]), rng.uniform(0.14, 0.34)

    def one(left: int) -> _Array:
        size = min(left, rate // 3)
        click = rng.standard_normal(size) * np.exp(-_seconds(size, rate) / 0.002) * rng.uniform(0.2, 0.6)
        return rng.uniform(0.7, 1) * (
            _ring(rng, size, rate, partials_hz, decays_s, np.array([1, 0.7, 0.4, 0.3])) + click
        )

    return _train(n, np.arange(0, n, spacing_s * rate), one)


def _footsteps(rng: Rng, n: int, rate: int) -> _Array:
    spacing_s, cut_hz, length_s = rng.uniform(0.38, 0.75), rng.uniform(250, 1_500), rng.uniform(0.03, 0.07)
    heel_hz = rng.uniform(60, 120)

    def one(left: int) -> _Array:
        size = min(left, rate // 3)
        t = _seconds(size, rate)
        scuff = _coloured(rng, size, rate, _band(80, cut_hz * rng.uniform(0.8, 1.25)))
        lag_s = rng.uniform(0.05, 0.1)  # heel, then sole
        shape = np.exp(-t / length_s) + 0.5 * np.exp(-np.maximum(0, t - lag_s) / length_s) * (t > lag_s)
        step: _Array = scuff * shape + np.sin(2 * np.pi * heel_hz * t) * np.exp(-t / 0.03)
        return step

    steps = np.arange(0, n / rate, spacing_s)
    return _train(n, (steps + rng.uniform(0, 0.04, len(steps))) * rate, one)


def _engine(rng: Rng, n: int, rate: int) -> _Array:
    speed = 1 + 0.06 * _slow(rng, n, rate, 0.7) + rng.uniform(-0.3, 0.3) * np.linspace(0, 1, n)
    phase = _phase(rng.uniform(24, 75) * np.maximum(0.3, speed), rate)
    loudness = rng.uniform(0.2, 1, 30) / np.arange(1, 31) ** rng.uniform(0.4, 0.9)
    firing = _added(n, (gain * np.sin(k * phase + 6.28 * gain) for k, gain in enumerate(loudness, 1)))
    noise = _coloured(rng, n, rate, _band(60, rng.uniform(500, 1_800), 2))
    sound: _Array = firing + rng.uniform(0.3, 0.9) * (1 + 0.6 * np.sin(phase)) * noise
    return sound


def _beep(rng: Rng, n: int, rate: int) -> _Array:
    hz, period_s, share = rng.uniform(900, 3_300), rng.uniform(0.16, 0.9), rng.uniform(0.3, 0.65)
    other_hz = hz * rng.choice([1.0, 1.0, rng.uniform(1.15, 1.5)])
    turn = _seconds(n, rate) / period_s
    gate: _Array = np.clip(25 * np.minimum(turn % 1, share - turn % 1), 0, 1)
    phase = _phase(np.where(np.floor(turn) % 2 == 0, hz, other_hz), rate)
    return gate * _added(n, (np.sin(k * phase) / k**2 for k in (1, 3) if k * max(hz, other_hz) < 0.45 * rate))


def _rain(rng: Rng, n: int, rate: int) -> _Array:
    hiss = _coloured(rng, n, rate, _band(rng.uniform(700, 1_600), rng.uniform(4_500, 7_500), 2))
    drops = np.zeros(n)
    hits = rng.integers(0, n, int(n / rate * rng.uniform(60, 260)))
    np.add.at(drops, hits, rng.exponential(1.0, len(hits)))
    tap = rng.standard_normal(rate // 100) * np.exp(-np.arange(rate // 100) / (0.0015 * rate))
    swell = np.sin(np.pi * np.linspace(0.03, 0.97, n)) ** 0.5 * np.exp(0.25 * _slow(rng, n, rate, 1.0))
    sound: _Array = swell * (hiss + rng.uniform(0.5, 1.5) * np.convolve(drops, tap)[:n])
    return sound


def _bell(rng: Rng, n: int, rate: int) -> _Array:
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.52, 2.67, 3.01, 4.1]) * rng.uniform(0.99, 1.01, 9)
    partials_hz = rng.uniform(380, 1_300) * ratios
    decays_s, spacing_s = rng.uniform(0.5, 1.6) / np.sqrt(ratios), rng.uniform(0.7, 1.8)
    loudness = rng.uniform(0.3, 1, 9) / np.sqrt(ratios)
    return _train(
        n,
        np.arange(0, n, spacing_s * rate),
        lambda left: _ring(rng, left, rate, partials_hz, decays_s, loudness),
    )


def _glass(rng: Rng, n: int, rate: int) -> _Array:
    crash = _coloured(rng, n, rate, _band(1_800, 7_800)) * np.exp(
        -_seconds(n, rate) / rng.uniform(0.04, 0.12)
    )
    starts = rng.exponential(rng.uniform(0.15, 0.3), rng.integers(10, 26)) * rate

    def shard(left: int) -> _Array:
        partials_hz = rng.uniform(1_900, 7_400, 3)
        return rng.exponential(1.0) * _ring(
            rng, min(left, rate // 2), rate, partials_hz, rng.uniform(0.01, 0.06, 3), np.ones(3)
        )

    return 1.5 * crash + _train(n, starts, shard)


def _babble(rng: Rng, n: int, rate: int) -> _Array:
    syllables = max(2, int(n / rate * rng.uniform(3, 6)))
    at = np.linspace(0, syllables - 1, n)
    step = np.arange(syllables)

    def gliding(low: float, high: float) -> _Array:
        return np.interp(at, step, rng.uniform(low, high, syllables))

    formants_hz = np.stack([gliding(300, 850), gliding(900, 2_300), gliding(2_300, 3_000)])
    pitch_hz = rng.uniform(90, 230) * (1 + 0.08 * _slow(rng, n, rate, 2.5))
    loudness = np.abs(np.sin(np.pi * (at + rng.uniform(0, 1)))) ** 0.7 * gliding(0.3, 1)
    return loudness * _voice(rng, n, rate, np.maximum(60, pitch_hz), formants_hz, 28, 0.15)


def _whistle(rng: Rng, n: int, rate: int) -> _Array:
    notes = rng.integers(1, 5)
    melody = rng.uniform(900, 2_600) * 2 ** (rng.integers(-5, 8, notes) / 12)
    edges = np.linspace(0, notes, n) * 0.999
    hz = melody[edges.astype(int)] * (1 + 0.015 * np.sin(2 * np.pi * rng.uniform(4, 7) * _seconds(n, rate)))
    hz *= 1 + rng.uniform(-0.12, 0.12) * (edges % 1)  # glides
    tone = np.sin(_phase(hz, rate)) * np.minimum(1, 15 * np.minimum(edges % 1, 1.0 - edges % 1))
    breath = _coloured(rng, n, rate, _band(0.7 * melody.min(), 1.5 * melody.max()))
    sound: _Array = tone + rng.uniform(0.03, 0.15) * breath
    return sound


EVENTS: dict[str, EventKind] = {
    "dog_bark": EventKind(0.5, 2.5, _bark),
    "bird_chirp": EventKind(0.8, 3.0, _chirp),
    "siren": EventKind(2.0, 6.0, _siren),
    "knock": EventKind(0.4, 1.6, _knock),
    "footsteps": EventKind(1.5, 5.0, _footsteps),
    "engine": EventKind(2.0, 7.0, _engine),
    "alarm_beep": EventKind(1.0, 4.0, _beep),
    "rain_burst": EventKind(2.0, 6.0, _rain),
    "bell": EventKind(1.0, 4.0, _bell),
    "glass_break": EventKind(0.6, 1.5, _glass),
    "speech_babble": EventKind(1.0, 5.0, _babble),
    "whistle": EventKind(0.6, 2.5, _whistle),
}
"""Every kind of event by name."""


# --- backgrounds


def _wind(rng: Rng, n: int, rate: int) -> _Array:
    return _coloured(rng, n, rate, lambda hz: 1 / (1 + (hz / 120) ** 1.5)) * np.exp(
        0.5 * _slow(rng, n, rate, 0.3)
    )


def _hum(rng: Rng, n: int, rate: int) -> _Array:
    mains_hz, t = rng.choice([50.0, 60.0]), _seconds(n, rate)
    tones = _added(
        n,
        (rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * mains_hz * k * t) for k in (1, 2, 3, 4, 6, 8)),
    )
    return tones + 0.5 * _coloured(rng, n, rate, lambda hz: 1 / np.sqrt(hz + 20))


def _crowd(rng: Rng, n: int, rate: int) -> _Array:
    voices = (
        _coloured(rng, n, rate, _band(rng.uniform(150, 400), rng.uniform(900, 2_600)))
        * np.exp(0.8 * _slow(rng, n, rate, 4.0))
        for _ in range(3)
    )
    return _added(n, voices)


def _traffic(rng: Rng, n: int, rate: int) -> _Array:
    return _coloured(rng, n, rate, _band(40, rng.uniform(250, 700), 3)) * np.exp(
        0.6 * _slow(rng, n, rate, 0.2)
    )


BACKGROUNDS: dict[str, Callable[[Rng, int, int], _Array]] = {
    "pink": lambda rng, n, rate: _coloured(rng, n, rate, lambda hz: 1 / np.sqrt(hz + 15)),
    "brown": lambda rng, n, rate: _coloured(rng, n, rate, lambda hz: 1 / (hz + 15)),
    "hum": _hum,
    "wind": _wind,
    "crowd": _crowd,
    "traffic": _traffic,
}
"""Every kind of background by name."""
