"""Synthesise sounds with NumPy at 32 kHz: oscillators, noise, envelopes, and instruments made of them.

An instrument is a function (rng, samples, tempo) -> float32 (samples,) of any level; `tempo` is in events per second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RATE = 32_000
Instrument = Callable[[np.random.Generator, int, float], np.ndarray]

_TABLE = 2048  # samples per period of the wavetable


def seconds(samples: int) -> np.ndarray:
    """Return the time of each sample in seconds, float64 (samples,)."""
    return np.arange(samples) / RATE


def tone(frequency: np.ndarray, partials: Sequence[float] | np.ndarray = (1.0,), phase: float = 0.0) -> np.ndarray:
    """Synthesise a tone of `frequency` (samples,) in Hz; partials[k] is the amplitude of harmonic k + 1."""
    spectrum = np.zeros(_TABLE // 2 + 1, dtype=complex)
    spectrum[1 : len(partials) + 1] = -0.5j * _TABLE * np.asarray(partials)
    period = np.fft.irfft(spectrum).astype(np.float32)
    position = np.cumsum(frequency / RATE) + phase
    return period[(position * _TABLE).astype(np.int64) % _TABLE]


def noise(rng: np.random.Generator, samples: int, low: float, high: float) -> np.ndarray:
    """Synthesise noise between two frequencies in Hz, RMS 1; n octaves outside, the amplitude falls by exp(-2 n²)."""
    spectrum = np.fft.rfft(rng.standard_normal(samples, dtype=np.float32))
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    octaves = np.log2(np.maximum(frequency, 1)).astype(np.float32)
    gain = np.exp(-2 * np.maximum(np.maximum(np.log2(low) - octaves, octaves - np.log2(high)), 0) ** 2)
    return normalise_rms(np.fft.irfft(spectrum * gain, samples).astype(np.float32))


def normalise_rms(sound: np.ndarray) -> np.ndarray:
    """Scale a sound to RMS 1; silence is returned unchanged."""
    rms = np.sqrt(np.mean(np.square(sound)), dtype=np.float32)
    return sound if rms == 0 else (sound / rms).astype(np.float32)


def events(rng: np.random.Generator, samples: int, tempo: float, jitter: float = 0.1) -> np.ndarray:
    """Sample the sample numbers of events: `tempo` per second, with normal jitter of `jitter` periods.

    Some may lie outside 0..samples."""
    period = RATE / tempo
    beats = np.arange(rng.uniform(-1, 0), samples / period)
    return np.sort((beats + rng.normal(0, jitter, len(beats))) * period).astype(int)


def decay(samples: int, starts: np.ndarray, time_constant: float, levels: np.ndarray | float = 1.0) -> np.ndarray:
    """Return an envelope, float32 (samples,), with an exponential decay of `time_constant` (s) from each start."""
    length = min(int(6 * time_constant * RATE), samples)
    curve = np.exp(-np.arange(length) / (time_constant * RATE)).astype(np.float32)
    curve[:64] *= np.linspace(0, 1, len(curve[:64]), dtype=np.float32)  # a fade-in, against clicks
    envelope = np.zeros(samples + length, dtype=np.float32)
    for start, level in zip(starts, np.broadcast_to(levels, len(starts)), strict=True):
        if -length < start < samples:
            envelope[max(0, start) : start + length] += level * curve[max(0, -start) :]
    return envelope[:samples]


def time_since(samples: int, starts: np.ndarray) -> np.ndarray:
    """Return the seconds since the latest start, float64 (samples,); before the first start, since sample 0."""
    marks = np.zeros(samples, dtype=np.int64)
    inside = starts[(starts > 0) & (starts < samples)]
    marks[inside] = inside
    return (np.arange(samples) - np.maximum.accumulate(marks)) / RATE


def count_starts(samples: int, starts: np.ndarray) -> np.ndarray:
    """Return the number of starts up to each sample, int (samples,)."""
    return np.cumsum(np.bincount(np.maximum(starts, 0), minlength=samples)[:samples])


def random_steps(rng: np.random.Generator, samples: int, starts: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return a random value per interval between starts, log-uniform in low..high, float64 (samples,)."""
    return np.exp(rng.uniform(np.log(low), np.log(high), len(starts) + 1))[count_starts(samples, starts)]


def glide(rng: np.random.Generator, samples: int, low: float, high: float, per_second: float) -> np.ndarray:
    """Return a random curve in low..high, linear between `per_second` knots per second, float64 (samples,)."""
    knots = int(np.ceil(samples / RATE * per_second)) + 3
    position = np.linspace(rng.uniform(0, 1), knots - 1.5, samples)
    return np.interp(position, np.arange(knots), rng.uniform(low, high, knots))


# --- own sounds of the classes with strong correlation ---------------------------------------------------------------


def whoosh(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise the whoosh of a swinging object: noise that swells and fades."""
    centre = rng.uniform(300, 900)
    swell = np.sin(np.pi * (tempo * seconds(samples) + rng.uniform())) ** 4
    return noise(rng, samples, centre, 2.5 * centre) * (0.05 + swell)


def boing(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise a struck spring: a tone whose pitch falls after each hit."""
    hits = events(rng, samples, tempo, 0.03)
    after = time_since(samples, hits)
    pitch = rng.uniform(120, 260) * (1 + 0.8 * np.exp(-after / 0.12))
    return tone(pitch, (1, 0.5, 0.3, 0.2)) * decay(samples, hits, rng.uniform(0.12, 0.3))


def whirr(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise a motor: a buzz with slow vibrato."""
    pitch = rng.uniform(90, 200) * (1 + 0.06 * np.sin(2 * np.pi * tempo * seconds(samples) + rng.uniform(0, 6)))
    return tone(pitch, [1 / k for k in range(1, 20)])


def ratchet(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise fast clicks."""
    clicks = events(rng, samples, rng.uniform(9, 16), 0.05)
    centre = rng.uniform(1200, 2800)
    return noise(rng, samples, centre, 1.6 * centre) * decay(samples, clicks, 0.008)


def thump(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise low double beats."""
    beats = events(rng, samples, tempo, 0.02)
    beats = np.sort(np.concatenate([beats, beats + int(0.25 * RATE / tempo)]))
    return tone(rng.uniform(60, 110) * (1 + 0.5 * np.exp(-time_since(samples, beats) / 0.03)), (1, 0.4)) * decay(
        samples, beats, 0.07
    )


def falling_whistle(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise whistles of falling pitch."""
    part = (tempo * seconds(samples) + rng.uniform()) % 1
    return tone(rng.uniform(1400, 2400) * 2 ** (-1.6 * part), (1, 0.15)) * np.minimum(1, 12 * (1 - part))


def rising_whistle(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise whistles of rising pitch."""
    part = (tempo * seconds(samples) + rng.uniform()) % 1
    return tone(rng.uniform(450, 800) * 2 ** (1.6 * part), (1, 0.15)) * np.minimum(1, 12 * part)


def blips(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise short tones of random pitches."""
    jumps = events(rng, samples, 2.5 * tempo, 0.1)
    return tone(random_steps(rng, samples, jumps, 500, 2000), (1, 0, 0.3)) * decay(samples, jumps, 0.06)


def chirps(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise a tone whose pitch rises and falls quickly."""
    wave = np.abs(((3 * tempo * seconds(samples) + rng.uniform()) % 1) * 2 - 1)
    return tone(rng.uniform(1500, 2800) * (1 + 0.5 * wave), (1, 0.3)) * (0.2 + 0.8 * wave)


def rattle(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise a rattle: short bursts of high noise at random levels."""
    shakes = events(rng, samples, rng.uniform(18, 30), 0.4)
    return noise(rng, samples, 3000, 9000) * decay(samples, shakes, 0.015, rng.uniform(0.3, 1, len(shakes)))


def siren(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise a siren: a tone with vibrato of about half an octave to either side."""
    swing = np.sin(2 * np.pi * tempo * seconds(samples) + rng.uniform(0, 6))
    return tone(rng.uniform(500, 900) * 2 ** (0.45 * swing), (1, 0.5, 0.35, 0.2))


def scrape(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise scraping on a rough surface: grainy noise that shifts from low to high."""
    grain = decay(samples, events(rng, samples, rng.uniform(40, 70), 0.3), 0.006)
    low, high = rng.uniform(600, 1000), rng.uniform(4000, 6000)
    part = (tempo * seconds(samples) + rng.uniform()) % 1
    return grain * (noise(rng, samples, low, 2 * low) * (1 - part) + noise(rng, samples, high / 2, high) * part)


# --- sounds that do not depend on the class --------------------------------------------------------------------------

_VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])


def talk(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise speech-like sound: a buzz filtered by the formants of random vowels, with hisses in between."""
    voice = rng.uniform(95, 230)
    buzz = tone(voice * glide(rng, samples, 0.85, 1.25, 3), [1 / k for k in range(1, 30)])
    spectrum = np.fft.rfft(buzz)
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    starts = events(rng, samples, rng.uniform(3, 5), 0.25)
    vowel = random_steps(rng, samples, starts, 1, len(_VOWELS)).astype(int)
    sound = np.zeros(samples, dtype=np.float32)
    for number in np.unique(vowel):
        formants = _VOWELS[number - 1] * rng.uniform(0.9, 1.15)
        gain = sum(np.exp(-(((frequency - f) / (80 + 0.06 * f)) ** 2)) * 0.5**k for k, f in enumerate(formants))
        sound += np.fft.irfft(spectrum * gain, samples).astype(np.float32) * (vowel == number)
    after = time_since(samples, starts)
    syllables = np.minimum(1, after / 0.03) * np.exp(-after / 0.15)
    hiss = noise(rng, samples, 3500, 8000) * decay(samples, starts[::3], 0.04)
    return normalise_rms(sound * syllables) + 0.3 * hiss


def wind(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise wind: low noise in gusts."""
    return noise(rng, samples, 60, rng.uniform(300, 700)) * glide(rng, samples, 0.2, 1, 1.5)


def rain(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise rain: high noise, and drops."""
    drops = rng.integers(0, samples, rng.integers(20, 80))
    spray = noise(rng, samples, 2000, 11000)
    return spray * (0.25 + decay(samples, drops, 0.004, rng.uniform(0.2, 1.5, len(drops))))


def hum(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise mains hum of 50 or 60 Hz."""
    base = np.full(samples, rng.choice([50.0, 60.0]))
    return tone(base, rng.uniform(0, 1, 12)) + 0.05 * noise(rng, samples, 100, 3000)


def music(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    """Synthesise music: a melody, a middle voice and a bass in a random scale."""
    scale = np.sort(rng.choice([0, 2, 3, 4, 5, 7, 8, 9, 10, 11], 5, replace=False))
    key, beat = rng.uniform(98, 196), rng.uniform(1.5, 4)
    sound = np.zeros(samples, dtype=np.float32)
    for octave, density, level in ((2, 1.0, 1.0), (1, 0.5, 0.8), (0, 0.25, 0.8)):
        notes = events(rng, samples, beat * density, 0.01)
        steps = rng.choice(scale, len(notes) + 1) / 12 + octave
        pitch = (key * 2.0**steps)[count_starts(samples, notes)]
        partials = rng.uniform(0, 1, 6) / np.arange(1, 7)
        sound += level * tone(pitch, partials) * decay(samples, notes, rng.uniform(0.15, 0.6))
    return sound


IRRELEVANT: dict[str, Instrument] = {"wind": wind, "rain": rain, "hum": hum, "music": music}


# --- sounds for the pretraining of audio teachers; no class of the dataset has them -----------------------------------


def _bell(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    ring = decay(samples, events(rng, samples, tempo), rng.uniform(0.25, 0.6))
    base = np.full(samples, rng.uniform(250, 700))
    return ring * (tone(base) + tone(2.76 * base) / 2 + tone(5.4 * base) / 3)


def _pluck(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    notes = events(rng, samples, 2 * tempo)
    return tone(random_steps(rng, samples, notes, 180, 500), (1, 0.8, 0.6, 0.5, 0.4, 0.3)) * decay(samples, notes, 0.15)


def _organ(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return tone(np.full(samples, rng.uniform(150, 450)), (1, 0, 0.5, 0, 0.35, 0, 0.25))


def _tremolo(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return _organ(rng, samples, tempo) * (1 + np.sin(2 * np.pi * rng.uniform(5, 9) * seconds(samples)))


def _hiss(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return noise(rng, samples, 4000, 12000)


def _pulsed_hiss(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return _hiss(rng, samples, tempo) * decay(samples, events(rng, samples, 2 * tempo), 0.1)


def _rumble(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return noise(rng, samples, 60, 160)


def _pulsed_rumble(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return _rumble(rng, samples, tempo) * decay(samples, events(rng, samples, 2 * tempo), 0.15)


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
    return noise(rng, samples, 300, 1000) * decay(samples, events(rng, samples, 2 * tempo), 0.02)


def _fast_knocks(rng: np.random.Generator, samples: int, tempo: float) -> np.ndarray:
    return noise(rng, samples, 300, 1000) * decay(samples, events(rng, samples, 10 * tempo), 0.015)


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
    """Mix `sound` at RMS 1 with `other` at `decibels` relative to it."""
    return normalise_rms(sound) + np.float32(10 ** (decibels / 20)) * normalise_rms(other)
