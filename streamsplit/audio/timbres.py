"""Endlessly many kinds of made-up sound: for training encoders on sound that anyone may redistribute.

`sounds` has twelve kinds with names. Here every seed is a kind of its own: something that sounds (strings, struck bodies, voices, noises,
clicks), something that lays it out in time (a drone, a rhythm, a scatter, a few strokes), a resonance, a room and a background. An
encoder that can tell such sounds apart, and knows one again a second later, has learned much of what telling real sounds apart needs
(contrastive learning from synthesisers: Cherep and Singh 2024, "Contrastive Learning from Synthetic Audio Doppelgängers").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
_Array = npt.NDArray[np.float64]
Rng = np.random.Generator
Play = Callable[[Rng, int, int], _Array]
"""One stroke of a sound whose character is settled: (rng for what differs from stroke to stroke, samples n, rate in Hz) to [n]."""

MOST_STROKES = 80


def make_timbre(seed: int, samples: int, sample_rate_hz: int = 16_000) -> Samples:
    """One made-up sound: one to three voices of random kinds over a background.

    Its character stays the same from beginning to end; strokes, pitch and loudness vary as in a recording.

    Args:
        seed: decides everything, 0 or more.
        samples: length.
        sample_rate_hz: of the sound.

    Returns:
        [samples] float32 in [-1, 1].
    """
    rng = np.random.default_rng((seed, 77))
    sound = _voice(rng, samples, sample_rate_hz)
    for _ in range(int(rng.choice(3, p=[0.6, 0.3, 0.1]))):
        sound = sound + _db(rng.uniform(-18, 0)) * _voice(rng, samples, sample_rate_hz)
    background = _noise(rng)(rng, samples, sample_rate_hz)
    sound = sound + _db(rng.uniform(-60, -12)) * background / _rms(background)
    return np.clip(sound * _db(rng.uniform(-45, -12)) / _rms(sound), -1.0, 1.0).astype(np.float32)


def _voice(rng: Rng, n: int, rate: int) -> _Array:
    """One thing that sounds, again and again: [n], root mean square 1."""
    sound = _laid_out(rng, _KINDS[int(rng.integers(len(_KINDS)))](rng), n, rate)
    if rng.random() < 0.7:
        sound = _filtered(sound, rate, _resonance(rng))
    if rng.random() < 0.5:
        sound = _in_a_room(rng, sound, rate)
    return sound / _rms(sound)


# --- in time


def _laid_out(rng: Rng, play: Play, n: int, rate: int) -> _Array:
    """A drone, a rhythm, a scatter, or a few strokes of one sound: [n]."""
    kind = int(rng.choice(4, p=[0.3, 0.3, 0.2, 0.2]))
    if kind == 0:
        return play(rng, n, rate) * np.exp(rng.uniform(0, 0.8) * _slow(rng, n, rate, _spread(rng, 0.2, 12)))
    length = int(_spread(rng, 0.03, 1.5) * rate)
    starts = _starts(rng, kind, n / rate, length / rate) * rate
    attack, fall = _spread(rng, 0.001, 0.1) * rate, _spread(rng, 0.15, 2.0) * length
    unequal_db = rng.uniform(0, 8)
    sound = np.zeros(n)
    for start in starts.astype(int)[:MOST_STROKES].tolist():
        at = np.arange(min(length, n - start))
        if len(at) > 8:
            shape = np.minimum(1, at / attack) * np.exp(-at / fall) * np.minimum(1, (len(at) - at) / 40)
            sound[start : start + len(at)] += (
                play(rng, len(at), rate) * shape * _db(-rng.uniform(0, unequal_db))
            )
    return sound


def _starts(rng: Rng, kind: int, seconds: float, length_s: float) -> _Array:
    """When the strokes begin, in seconds, sorted."""
    if kind == 2:  # scattered
        return np.sort(rng.uniform(0, seconds, int(seconds * _spread(rng, 1.0, 14.0)) + 1))
    if kind == 3:  # a few
        return np.arange(rng.uniform(0, 0.5), seconds, rng.uniform(0.8, 1.8))
    period_s = max(_spread(rng, 0.08, 1.5), 0.6 * length_s)
    beats = np.arange(rng.uniform(0, period_s), seconds, period_s)
    return np.sort(np.abs(beats + rng.uniform(0, 0.08) * period_s * rng.standard_normal(len(beats))))


# --- what sounds


def _string(rng: Rng) -> Play:
    """Harmonics of one pitch: strings, pipes, motors, alarms."""
    pitch_hz, lean, odd = _spread(rng, 35, 2_500), rng.uniform(0.2, 2.2), rng.random() < 0.3
    loudness = rng.uniform(0.2, 1, 24) / np.arange(1, 25) ** lean
    loudness[1::2] *= 0.05 if odd else 1.0
    vibrato_hz, vibrato, glide = rng.uniform(3, 9), rng.uniform(0, 0.03), rng.normal(0, 0.35)
    wander, drift_hz = rng.uniform(0, 0.08), _spread(rng, 0.3, 8)
    notes = 2 ** (rng.integers(-7, 8, int(rng.choice([1, 1, 1, 2, 4]))) / 12)
    breath, noise = _spread(rng, 0.003, 0.5), _noise(rng)

    def play(stroke: Rng, n: int, rate: int) -> _Array:
        t, along = np.arange(n) / rate, np.linspace(0, 1, n)
        hz = (
            pitch_hz * stroke.choice(notes) * 2 ** (glide * along + wander * _slow(stroke, n, rate, drift_hz))
        )
        phase = 2 * np.pi * np.cumsum(hz * (1 + vibrato * np.sin(2 * np.pi * vibrato_hz * t))) / rate
        top = min(24, int(0.45 * rate / float(hz.max())))
        tone = _added(n, (loudness[k - 1] * np.sin(k * phase) for k in range(1, max(1, top) + 1)))
        return tone / _rms(tone) + breath * noise(stroke, n, rate)

    return play


def _struck(rng: Rng) -> Play:
    """Damped partials without a common pitch: wood, metal, glass, drops."""
    count = int(rng.integers(2, 10))
    partials_hz = _spread(rng, 80, 4_000) * np.sort(rng.uniform(0.7, 7.0, count))
    decays_s = _spread(rng, 0.006, 0.8) * rng.uniform(0.3, 1.5, count) / np.sqrt(partials_hz / partials_hz[0])
    loudness, click, bent = rng.uniform(0.2, 1, count), rng.uniform(0, 0.8), rng.normal(0, 0.15)

    def play(stroke: Rng, n: int, rate: int) -> _Array:
        t = np.arange(n) / rate
        turns = t + bent * 0.05 * (1 - np.exp(-t / 0.05))
        tune = stroke.uniform(0.97, 1.03)
        heard = [
            part for part in zip(partials_hz * tune, decays_s, loudness, strict=True) if part[0] < 0.46 * rate
        ]
        ring = _added(
            n, (gain * np.exp(-t / decay_s) * np.sin(2 * np.pi * hz * turns) for hz, decay_s, gain in heard)
        )
        return ring + click * stroke.standard_normal(n) * np.exp(-t / 0.002)

    return play


def _throat(rng: Rng) -> Play:
    """Harmonics under moving resonances: voices, calls, cries."""
    pitch_hz, bend, formants = _spread(rng, 80, 900), rng.normal(0, 0.5), int(rng.integers(2, 5))
    centres_hz = np.sort(_spread(rng, 250, 1_200) * rng.uniform(1, 6, formants))
    moving, speed_hz, rough = rng.uniform(0, 0.4), _spread(rng, 1, 7), rng.uniform(0.02, 0.7)
    noise = _noise(rng)

    def play(stroke: Rng, n: int, rate: int) -> _Array:
        along = np.linspace(-1, 1, n)
        hz = np.clip(
            pitch_hz * 2 ** (bend * (1 - along**2) + 0.08 * _slow(stroke, n, rate, speed_hz)), 40, 0.2 * rate
        )
        phase = 2 * np.pi * np.cumsum(hz) / rate
        paths_hz = [centre * 2 ** (moving * _slow(stroke, n, rate, speed_hz)) for centre in centres_hz]

        def harmonic(k: int) -> _Array:
            gain = _added(n, (1 / (1 + ((k * hz - path) / (60 + 0.1 * path)) ** 2) for path in paths_hz))
            heard: _Array = np.where(k * hz < 0.46 * rate, gain, 0.0) * np.sin(k * phase) / k**0.4
            return heard

        tone = _added(n, (harmonic(k) for k in range(1, 15)))
        return tone / _rms(tone) + rough * noise(stroke, n, rate)

    return play


def _noise(rng: Rng) -> Play:
    """Noise of a random colour: wind, water, hiss, breath, applause."""
    spectrum = _resonance(rng) if rng.random() < 0.6 else _slope(rng)
    flutter, flutter_hz = rng.uniform(0, 0.9), _spread(rng, 0.3, 40)

    def play(stroke: Rng, n: int, rate: int) -> _Array:
        sound = _filtered(stroke.standard_normal(n), rate, spectrum)
        return sound / _rms(sound) * np.exp(flutter * _slow(stroke, n, rate, flutter_hz))

    return play


def _clicks(rng: Rng) -> Play:
    """Impulses, regular or not, through resonances: insects, crackle, ratchets, rain, engines."""
    rate_hz, regular = _spread(rng, 5, 400), rng.random() < 0.5
    spectrum, body_s = _resonance(rng), _spread(rng, 0.0005, 0.02)

    def play(stroke: Rng, n: int, rate: int) -> _Array:
        hits = np.zeros(n)
        count = max(1, int(n / rate * rate_hz))
        places = np.linspace(0, n - 1, count) if regular else stroke.uniform(0, n - 1, count)
        np.add.at(hits, places.astype(int), stroke.exponential(1.0, count))
        size = min(n, int(6 * body_s * rate) + 2)
        body = stroke.standard_normal(size) * np.exp(-np.arange(size) / (body_s * rate))
        return _filtered(_convolved(hits, body), rate, spectrum)

    return play


def _modulated(rng: Rng) -> Play:
    """One oscillator bending another's frequency: chirps, sirens, bells, machines."""
    carrier_hz, ratio, depth = _spread(rng, 100, 5_000), _spread(rng, 0.002, 3.0), _spread(rng, 0.1, 6.0)
    sweep, fade = rng.normal(0, 0.8), rng.uniform(0, 3)

    def play(stroke: Rng, n: int, rate: int) -> _Array:
        along = np.linspace(0, 1, n)
        hz = np.clip(carrier_hz * stroke.uniform(0.95, 1.05) * 2 ** (sweep * along), 30, 0.4 * rate)
        phase = 2 * np.pi * np.cumsum(hz) / rate
        deep = min(depth, 0.3 / ratio) if ratio < 0.05 else depth  # slow modulation bends by at most a third
        return np.sin(phase + deep * np.exp(-fade * along) * np.sin(ratio * phase))

    return play


_KINDS: tuple[Callable[[Rng], Play], ...] = (_string, _struck, _throat, _noise, _clicks, _modulated)


# --- what shapes it


def _slope(rng: Rng) -> Callable[[_Array], _Array]:
    """A spectrum that falls (or rises) by so much per octave, within a band: amplitude of hz."""
    lean, low_hz, high_hz = rng.uniform(-0.3, 1.3), _spread(rng, 20, 600), _spread(rng, 800, 9_000)
    return lambda hz: (
        np.maximum(hz, 20) ** -lean / (1 + (low_hz / np.maximum(hz, 1)) ** 3 + (hz / high_hz) ** 4)
    )


def _resonance(rng: Rng) -> Callable[[_Array], _Array]:
    """Up to five peaks on a slope: amplitude of hz."""
    slope, peaks = _slope(rng), int(rng.integers(1, 6))
    centres_hz = np.exp(rng.uniform(np.log(80), np.log(7_500), peaks))
    widths, gains = np.exp(rng.uniform(np.log(0.02), np.log(0.5), peaks)), rng.uniform(0.5, 12, peaks)

    def amplitude(hz: _Array) -> _Array:
        octaves = np.log2(np.maximum(hz, 10)[:, None] / centres_hz)
        shape: _Array = slope(hz) * (1 + (gains / (1 + (octaves / widths) ** 2)).sum(1))
        return shape

    return amplitude


def _filtered(sound: _Array, rate: int, amplitude: Callable[[_Array], _Array]) -> _Array:
    size = 1 << max(4, (len(sound) - 1).bit_length())
    gain = amplitude(np.linspace(0.0, rate / 2, size // 2 + 1))
    filtered: _Array = np.fft.irfft(np.fft.rfft(sound, size) * gain / gain.max(), size)[: len(sound)]
    return filtered


def _in_a_room(rng: Rng, sound: _Array, rate: int) -> _Array:
    """The sound and its echoes: noise that dies away, the high end first."""
    decay_s, wet = _spread(rng, 0.03, 0.6), _db(rng.uniform(-20, 3))
    t = np.arange(int(3 * decay_s * rate)) / rate
    echoes = rng.standard_normal(len(t)) * np.exp(-t / decay_s)
    wet_sound = _convolved(sound, np.convolve(echoes, np.ones(3) / 3, "same"))
    return sound / _rms(sound) + wet * wet_sound / _rms(wet_sound)


def _convolved(sound: _Array, with_: _Array) -> _Array:
    size = 1 << (len(sound) + len(with_) - 1).bit_length()
    product: _Array = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(with_, size), size)[: len(sound)]
    return product


def _slow(rng: Rng, n: int, rate: int, hz: float) -> _Array:
    """A random curve [n], deviation about 1, that changes about `hz` times a second."""
    knots = int(n / rate * hz * 2) + 4
    return np.interp(np.linspace(0, knots - 1, n), np.arange(knots), rng.standard_normal(knots))


def _added(n: int, parts: Iterable[_Array]) -> _Array:
    sound: _Array = np.zeros(n)
    for part in parts:
        sound = sound + part
    return sound


def _spread(rng: Rng, low: float, high: float) -> float:
    """Log-uniform between two positive numbers."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _db(level: float) -> float:
    return float(10 ** (level / 20))


def _rms(sound: _Array) -> float:
    return max(1e-9, float(np.sqrt(np.mean(sound * sound))))
