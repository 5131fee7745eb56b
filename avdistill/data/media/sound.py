"""Sound as one channel, at the times at which it is heard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avdistill.data.media.container import Damage, MediaError, decode, one_thread, open_video, origin_of, restarts

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame

SAMPLE_RATE = 32_000  # Hz, what PANNs hears
SILENCE = 1e-4  # -80 dB of full scale: below it 16-bit sound is three steps of dither or nothing
NO_AUDIO = "no audio stream"
CANCELLED = 1e-4  # power of the mean, relative to that of the channels, below which they cancel each other out
GAP = 0.05  # s without sound between two packets: shorter ones are rounding of timestamps,
LOSS = 0.005  # unless packets were lost there


def read_audio(
    path: Path,
    rate: int = SAMPLE_RATE,
    start: float = 0.0,
    end: float | None = None,
    damage: Damage | None = None,
    first_channel: bool = False,
) -> np.ndarray:
    """The sound from `start` to `end` as float32 (samples,): the mean of the channels, resampled to `rate` Hz.

    Where the channels cancel each other out (opposite phase), or with `first_channel`, it is the first one. Times
    without sound between two packets are silence; the layout and the sampling rate may change. Packets that cannot be
    decoded are counted in `damage`. Ends with the stream if that is shorter. Raises MediaError if there is no audio
    stream or none of it can be decoded.
    """
    import av

    damage = damage if damage is not None else Damage()
    chunks: list[np.ndarray] = []
    mix = _Mixer(first_channel)
    with open_video(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path}: {NO_AUDIO}")
        stream = container.streams.audio[0]
        one_thread(stream, path)
        origin = origin_of(container.streams.video[0]) if container.streams.video else 0.0
        if start > 2 and not restarts(container):  # one second earlier, for codecs whose frames depend on earlier ones
            container.seek(int((start - 1 + origin) * av.time_base))
        resampler, kind = None, None
        first: float | None = None
        until, seen = 0.0, damage.packets  # when the sound so far ends, and how many packets had been lost by then

        def flush() -> None:
            if resampler is not None:
                chunks.extend(map(mix, resampler.resample(None)))

        for frame in decode(container, stream, damage):
            time = until if frame.time is None else frame.time - origin
            if end is not None and time > end:
                break
            if first is None:
                first = until = time
            missing = time - until > (GAP if damage.packets == seen else LOSS)
            seen = damage.packets
            if kind != (frame.layout.name, frame.sample_rate, frame.format.name) or missing:
                flush()
                kind = (frame.layout.name, frame.sample_rate, frame.format.name)
                resampler = av.AudioResampler(format="fltp", rate=rate)
            if missing:
                heard = sum(map(len, chunks))
                chunks.append(np.zeros(max(0, round((time - first) * rate) - heard), dtype=np.float32))
                until = time
            assert resampler is not None
            chunks.extend(map(mix, resampler.resample(frame)))
            until += frame.samples / frame.sample_rate
        if first is None:
            raise MediaError(f"{path}: no sound could be decoded")
        flush()
    sound = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.float32)
    if mix.cancelled:
        return read_audio(path, rate, start, end, damage, first_channel=True)
    lead = round((first - start) * rate)
    sound = np.concatenate([np.zeros(lead, dtype=np.float32), sound]) if lead > 0 else sound[-lead:]
    return np.ascontiguousarray(sound if end is None else sound[: round((end - start) * rate)], dtype=np.float32)


class _Mixer:
    """Mixes channels to one: their mean, or the first one. `cancelled`: next to nothing is left in the mean."""

    def __init__(self, first: bool) -> None:
        self.first, self.power, self.mixed_power, self.loudest = first, 0.0, 0.0, 0.0

    @property
    def cancelled(self) -> bool:
        return self.loudest > SILENCE and self.mixed_power < CANCELLED * self.power

    def __call__(self, piece: AudioFrame) -> np.ndarray:
        channels: np.ndarray = piece.to_ndarray()
        if self.first or len(channels) == 1:
            return channels[0]
        mixed: np.ndarray = channels.mean(axis=0)
        self.power += float(np.square(channels, dtype=np.float64).mean(axis=0).sum())
        self.mixed_power += float(np.square(mixed, dtype=np.float64).sum())
        self.loudest = max(self.loudest, float(np.abs(channels).max(initial=0)))
        return mixed
