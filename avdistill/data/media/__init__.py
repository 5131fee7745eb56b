"""Read and write video files: the only package that imports PyAV and decord.

Times are seconds from the first frame of the file. A frame is the one that a player shows at that time: FFmpeg's
sequential decode, at the times that the packets carry, upright where the file has a rotation flag. decord, which seeks
by itself and scales while it decodes, is used for the containers and codecs in which it was shown to give the same
(DECORD_READS); elsewhere it shifts or mixes up frames, or never returns. Pixels are taken to be square.

Damage costs what is damaged: packets that cannot be decoded are left out and counted, and frames in which a decoder
hides errors are kept and counted, by PyAV only: decord does not tell. What no decoder notices is not counted: HEVC, VP8
and VP9 make a picture of any bytes, and H.264 of some; nor are later frames, which refer to a damaged one.
"""

from avdistill.data.media.container import Damage, MediaError, frame_size
from avdistill.data.media.frames import Reader, has_decord, read_frames
from avdistill.data.media.probing import Audio, Probe, check_readers, probe
from avdistill.data.media.sound import NO_AUDIO, SAMPLE_RATE, read_audio
from avdistill.data.media.writing import write_video

__all__ = [
    "NO_AUDIO",
    "SAMPLE_RATE",
    "Audio",
    "Damage",
    "MediaError",
    "Probe",
    "Reader",
    "check_readers",
    "frame_size",
    "has_decord",
    "probe",
    "read_audio",
    "read_frames",
    "write_video",
]
