"""Sounds synthesised with NumPy at 32 kHz: oscillators, noise, strikes, and instruments made of them.

An instrument is a function (rng, samples, tempo) -> float32 (samples,) of any loudness; `tempo` is events per second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RATE = 32_000
Instrument = Callable[[np.random.Generator, int, float], np.ndarray]

_TABLE = 2048  # samples of one period


def seconds(samples: int) -> np.ndarray:
    """The time of each sample, float64 (samples,)."""
    return np.arange(samples) / RATE


def tone(frequency: np.ndarray, partials: Sequence[float] | np.ndarray = (1.0,), phase: float = 0.0) -> np.ndarray:
    """An oscillator whose pitch follows `frequency` (samples,) in Hz; partials[k] is the loudness of harmonic k + 1."""
    spectrum = np.zeros(_TABLE // 2 + 1, dtype=complex)
    spectrum[1 : len(partials) + 1] = -0.5j * _TABLE * np.asarray(partials)
    period = np.fft.irfft(spectrum).astype(np.float32)
    position = np.cumsum(frequency / RATE) + phase
    return period[(position * _TABLE).astype(np.int64) % _TABLE]


def noise(rng: np.random.Generator, samples: int, low: float, high: float) -> np.ndarray:
    """Noise between two frequencies in Hz, RMS 1; n octaves outside of them it is weaker by exp(-2 n²)."""
    spectrum = np.fft.rfft(rng.standard_normal(samples, dtype=np.float32))
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    octaves = np.log2(np.maximum(frequency, 1)).astype(np.float32)
    gain = np.exp(-2 * np.maximum(np.maximum(np.log2(low) - octaves, octaves - np.log2(high)), 0) ** 2)
    return loud(np.fft.irfft(spectrum * gain, samples).astype(np.float32))


def loud(sound: np.ndarray) -> np.ndarray:
    """The same with RMS 1; silence stays silence."""
    rms = np.sqrt(np.mean(np.square(sound)), dtype=np.float32)
    return sound if rms == 0 else (sound / rms).astype(np.float32)


def events(rng: np.random.Generator, samples: int, tempo: float, jitter: float = 0.1) -> np.ndarray:
    """Sample numbers of beats: `tempo` a second, each early or late by `jitter` of the gap."""
    gap = RATE / tempo
    beats = np.arange(rng.uniform(-1, 0), samples / gap)
    return np.sort((beats + rng.normal(0, jitter, len(beats))) * gap).astype(int)


def decays(samples: int, starts: np.ndarray, seconds_: float, levels: np.ndarray | float = 1.0) -> np.ndarray:
    """An envelope that jumps up at each start and falls by a factor e in `seconds_`."""
    length = min(int(6 * seconds_ * RATE), samples)
    fall = np.exp(-np.arange(length) / (seconds_ * RATE)).astype(np.float32)
    fall[:64] *= np.linspace(0, 1, len(fall[:64]), dtype=np.float32)
    envelope = np.zeros(samples + length, dtype=np.float32)
    for start, level in zip(starts, np.broadcast_to(levels, len(starts)), strict=True):
        if -length < start < samples:
            envelope[max(0, start) : start + length] += level * fall[max(0, -start) :]
    return envelope[:samples]


def since(samples: int, starts: np.ndarray) -> np.ndarray:
    """Seconds since the latest start, float64 (samples,); before the first, since the beginning."""
    marks = np.zeros(samples, dtype=np.int64)
    inside = starts[(starts > 0) & (starts < samples)]
    marks[inside] = inside
    return (np.arange(samples) - np.maximum.accumulate(marks)) / RATE


def count(samples: int, starts: np.ndarray) -> np.ndarray:
    """How many starts there were up to each sample, int (samples,)."""
    return np.cumsum(np.bincount(np.maximum(starts, 0), minlength=samples)[:samples])


def held(rng: np.random.Generator, samples: int, starts: np.ndarray, low: float, high: float) -> np.ndarray:
    """A value for each stretch between starts, drawn evenly on a logarithmic scale, float64 (samples,)."""
    return np.exp(rng.uniform(np.log(low), np.log(high), len(starts) + 1))[count(samples, starts)]


def glide(rng: np.random.Generator, samples: int, low: float, high: float, per_second: float) -> np.ndarray:
    """A value that wanders smoothly between two bounds, with about `per_second` turns a second."""
    knots = int(np.ceil(samples / RATE * per_second)) + 3
    place = np.linspace(rng.uniform(0, 1), knots - 1.5, samples)
    return np.interp(place, np.arange(knots), rng.uniform(low, high, knots))


# --- sounds that belong to an action: one of its own each -----------------------------------------------------------


def whoosh(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Air past something that swings."""
    centre = rng.uniform(300, 900)
    swell = np.sin(np.pi * (tempo * seconds(samples) + rng.uniform())) ** 4
    return noise(rng, samples, centre, 2.5 * centre) * (0.05 + swell)


def boing(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """A spring that is hit, and falls back to its pitch."""
    hits = events(rng, samples, tempo, 0.03)
    after = since(samples, hits)
    pitch = rng.uniform(120, 260) * (1 + 0.8 * np.exp(-after / 0.12))
    return tone(pitch, (1, 0.5, 0.3, 0.2)) * decays(samples, hits, rng.uniform(0.12, 0.3))


def whirr(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """A motor with a slow wobble."""
    pitch = rng.uniform(90, 200) * (1 + 0.06 * np.sin(2 * np.pi * tempo * seconds(samples) + rng.uniform(0, 6)))
    return tone(pitch, [1 / k for k in range(1, 20)])


def ratchet(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Quick clicks."""
    clicks = events(rng, samples, rng.uniform(9, 16), 0.05)
    centre = rng.uniform(1200, 2800)
    return noise(rng, samples, centre, 1.6 * centre) * decays(samples, clicks, 0.008)


def thump(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """A double beat, low."""
    beats = events(rng, samples, tempo, 0.02)
    beats = np.sort(np.concatenate([beats, beats + int(0.25 * RATE / tempo)]))
    return tone(rng.uniform(60, 110) * (1 + 0.5 * np.exp(-since(samples, beats) / 0.03)), (1, 0.4)) * decays(
        samples, beats, 0.07
    )


def falling_whistle(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """A whistle that falls, again and again."""
    part = (tempo * seconds(samples) + rng.uniform()) % 1
    return tone(rng.uniform(1400, 2400) * 2 ** (-1.6 * part), (1, 0.15)) * np.minimum(1, 12 * (1 - part))


def rising_whistle(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """A whistle that rises, again and again."""
    part = (tempo * seconds(samples) + rng.uniform()) % 1
    return tone(rng.uniform(450, 800) * 2 ** (1.6 * part), (1, 0.15)) * np.minimum(1, 12 * part)


def blips(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Short tones, each of another pitch."""
    jumps = events(rng, samples, 2.5 * tempo, 0.1)
    return tone(held(rng, samples, jumps, 500, 2000), (1, 0, 0.3)) * decays(samples, jumps, 0.06)


def chirps(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """A tone that darts up and down."""
    wave = np.abs(((3 * tempo * seconds(samples) + rng.uniform()) % 1) * 2 - 1)
    return tone(rng.uniform(1500, 2800) * (1 + 0.5 * wave), (1, 0.3)) * (0.2 + 0.8 * wave)


def rattle(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Small hard things shaken."""
    shakes = events(rng, samples, rng.uniform(18, 30), 0.4)
    return noise(rng, samples, 3000, 9000) * decays(samples, shakes, 0.015, rng.uniform(0.3, 1, len(shakes)))


def siren(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """A tone that sways by half an octave to either side."""
    swing = np.sin(2 * np.pi * tempo * seconds(samples) + rng.uniform(0, 6))
    return tone(rng.uniform(500, 900) * 2 ** (0.45 * swing), (1, 0.5, 0.35, 0.2))


def scrape(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Something dragged over a rough floor."""
    grain = decays(samples, events(rng, samples, rng.uniform(40, 70), 0.3), 0.006)
    low, high = rng.uniform(600, 1000), rng.uniform(4000, 6000)
    part = (tempo * seconds(samples) + rng.uniform()) % 1
    return grain * (noise(rng, samples, low, 2 * low) * (1 - part) + noise(rng, samples, high / 2, high) * part)


# --- sounds that many classes share --------------------------------------------------------------------------------

_VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])


def talk(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Like speech: a buzz whose pitch wanders, shaped by the formants of changing vowels, with hisses between."""
    voice = rng.uniform(95, 230)
    buzz = tone(voice * glide(rng, samples, 0.85, 1.25, 3), [1 / k for k in range(1, 30)])
    spectrum = np.fft.rfft(buzz)
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    starts = events(rng, samples, rng.uniform(3, 5), 0.25)
    vowel = held(rng, samples, starts, 1, len(_VOWELS)).astype(int)
    sound = np.zeros(samples, dtype=np.float32)
    for number in np.unique(vowel):
        formants = _VOWELS[number - 1] * rng.uniform(0.9, 1.15)
        gain = sum(np.exp(-(((frequency - f) / (80 + 0.06 * f)) ** 2)) * 0.5**k for k, f in enumerate(formants))
        sound += np.fft.irfft(spectrum * gain, samples).astype(np.float32) * (vowel == number)
    after = since(samples, starts)
    syllables = np.minimum(1, after / 0.03) * np.exp(-after / 0.15)
    hiss = noise(rng, samples, 3500, 8000) * decays(samples, starts[::3], 0.04)
    return loud(sound * syllables) + 0.3 * hiss


def wind(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Low noise in gusts."""
    return noise(rng, samples, 60, rng.uniform(300, 700)) * glide(rng, samples, 0.2, 1, 1.5)


def rain(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """High noise, and drops."""
    drops = rng.integers(0, samples, rng.integers(20, 80))
    spray = noise(rng, samples, 2000, 11000)
    return spray * (0.25 + decays(samples, drops, 0.004, rng.uniform(0.2, 1.5, len(drops))))


def hum(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Mains hum."""
    base = np.full(samples, rng.choice([50.0, 60.0]))
    return tone(base, rng.uniform(0, 1, 12)) + 0.05 * noise(rng, samples, 100, 3000)


def music(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """A melody and a bass on one random scale and instrument."""
    scale = np.sort(rng.choice([0, 2, 3, 4, 5, 7, 8, 9, 10, 11], 5, replace=False))
    key, beat = rng.uniform(98, 196), rng.uniform(1.5, 4)
    sound = np.zeros(samples, dtype=np.float32)
    for octave, density, level in ((2, 1.0, 1.0), (1, 0.5, 0.8), (0, 0.25, 0.8)):
        notes = events(rng, samples, beat * density, 0.01)
        steps = rng.choice(scale, len(notes) + 1) / 12 + octave
        pitch = (key * 2.0**steps)[count(samples, notes)]
        partials = rng.uniform(0, 1, 6) / np.arange(1, 7)
        sound += level * tone(pitch, partials) * decays(samples, notes, rng.uniform(0.15, 0.6))
    return sound


IRRELEVANT: dict[str, Instrument] = {"wind": wind, "rain": rain, "hum": hum, "music": music}


# --- sounds that a teacher learns to hear with; none belongs to an action ------------------------------------------


def _bell(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    ring = decays(samples, events(rng, samples, tempo), rng.uniform(0.25, 0.6))
    base = np.full(samples, rng.uniform(250, 700))
    return ring * (tone(base) + tone(2.76 * base) / 2 + tone(5.4 * base) / 3)


def _pluck(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    notes = events(rng, samples, 2 * tempo)
    return tone(held(rng, samples, notes, 180, 500), (1, 0.8, 0.6, 0.5, 0.4, 0.3)) * decays(samples, notes, 0.15)


def _organ(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return tone(np.full(samples, rng.uniform(150, 450)), (1, 0, 0.5, 0, 0.35, 0, 0.25))


def _tremolo(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return _organ(rng, samples, tempo) * (1 + np.sin(2 * np.pi * rng.uniform(5, 9) * seconds(samples)))


def _hiss(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return noise(rng, samples, 4000, 12000)


def _pulsed_hiss(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return _hiss(rng, samples, tempo) * decays(samples, events(rng, samples, 2 * tempo), 0.1)


def _rumble(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return noise(rng, samples, 60, 160)


def _pulsed_rumble(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return _rumble(rng, samples, tempo) * decays(samples, events(rng, samples, 2 * tempo), 0.15)


def _upward(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    part = (2 * tempo * seconds(samples) + rng.uniform()) % 1
    return tone(rng.uniform(180, 400) * 2 ** (2 * part), (1, 0.6, 0.4, 0.3))


def _downward(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    part = (2 * tempo * seconds(samples) + rng.uniform()) % 1
    return tone(rng.uniform(720, 1600) * 2 ** (-2 * part), (1, 0.6, 0.4, 0.3))


def _warble(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    swing = np.sin(2 * np.pi * rng.uniform(6, 12) * seconds(samples))
    return tone(rng.uniform(700, 1500) * 2 ** (0.3 * swing))


def _slow_knocks(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return noise(rng, samples, 300, 1000) * decays(samples, events(rng, samples, 2 * tempo), 0.02)


def _fast_knocks(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return noise(rng, samples, 300, 1000) * decays(samples, events(rng, samples, 10 * tempo), 0.015)


def _buzz(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return tone(np.full(samples, rng.uniform(60, 160)), [1.0] * 40)


def _stutter(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return _buzz(rng, samples, tempo) * (((4 * tempo * seconds(samples)) % 1) < 0.5)


def _beeps(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return tone(np.full(samples, rng.uniform(1500, 3500))) * (((3 * tempo * seconds(samples)) % 1) < 0.4)


GENERIC: dict[str, Instrument] = {
    "bell": _bell,
    "pluck": _pluck,
    "organ": _organ,
    "tremolo": _tremolo,
    "hiss": _hiss,
    "pulsed hiss": _pulsed_hiss,
    "rumble": _rumble,
    "pulsed rumble": _pulsed_rumble,
    "upward": _upward,
    "downward": _downward,
    "warble": _warble,
    "slow knocks": _slow_knocks,
    "fast knocks": _fast_knocks,
    "buzz": _buzz,
    "stutter": _stutter,
    "beeps": _beeps,
}


def mix(sound: np.ndarray, other: np.ndarray, decibels: float) -> np.ndarray:
    """`sound` at RMS 1 with `other` at `decibels` relative to it."""
    return loud(sound) + np.float32(10 ** (decibels / 20)) * loud(other)
