"""The official sites of CREMA-D, AVE and RAVDESS in little: classes differ, some clips are odd."""

from __future__ import annotations

from pathlib import Path

from avdistill.data import media
from avdistill.data.datasets import ave, crema_d, ravdess
from tests.helpers.little import ramp, tone
from tests.helpers.replicas import ave_members, write_crema_d, write_flv, write_ravdess, write_zip

CREMA_D_ACTORS = ("1001", "1002", "1064", "1076", "1091")
CREMA_D_CLIPS = [f"{actor}_MTI_{emotion}_XX" for actor in CREMA_D_ACTORS for emotion in crema_d.EMOTIONS]
CREMA_D_CLIPS += ["1064_IEO_DIS_MD", "1064_TIE_SAD_XX"]
CREMA_D_SILENT = "1001_MTI_ANG_XX"  # no audio stream, as 28 clips had before December 2020
CREMA_D_PUBLISHED = {"train.csv": [n for n in CREMA_D_CLIPS if "HAP" not in n], "test.csv": CREMA_D_CLIPS[3::6]}

BELL, SPEECH = "Church bell", "Male speech, man speaking"
AVE_LISTS = {
    "train": [
        f"{BELL}&RUhOCu3LNXM&good&0&10",
        f"{BELL}&VWi2ENBuTbw&good&0&0",  # an event without length
        f"{BELL}&-J2WJaG1Dd4&good&0&10",
        f"{BELL}&gjCew0Kp0iM&good&0&10",
        f"{BELL}&bell-train1&good&0&10",
        f"{BELL}&bell-train2&good&0&7",
        f"{SPEECH}&0giAfYq9oVM&good&3&9",
        f"{SPEECH}&--HuBNHXu9I&good&0&10",
        f"{SPEECH}&RUhOCu3LNXM&good&2&6",  # two labels in one list
        f"{SPEECH}&0_p7OHdHpiM&good&0&5",
    ],
    "val": [f"{BELL}&c---zaDCTaE&good&0&10", f"{SPEECH}&17PmRIJG9BQ&good&3&10", f"{SPEECH}&gjCew0Kp0iM&good&1&4"],
    "test": [
        f"{BELL}&_QQP43H56TA&good&0&10",
        f"{BELL}&bell--test1&good&0&10",
        f"{SPEECH}&-J2WJaG1Dd4&good&5&10",
        f"{SPEECH}&speech-test&good&2&10",
        f"{BELL}&-J2WJaG1Dd4&good&0&10",
    ],
}
AVE_VIDEOS = {row.split("&")[1] for rows in AVE_LISTS.values() for row in rows}
AVE_MISSING = "0_p7OHdHpiM"

RAVDESS_ACTORS = ("01", "02", "03", "12", "24")  # the archives of the others have but a recording without sound
RAVDESS_MISSING = "01-01-03-02-01-02-24"  # one of many


def write_mp4(path: Path, number: int, silent: bool = False) -> bytes:
    """A video of 2 s, whose pictures and sound depend on `number`. Returns its bytes."""
    media.write_video(path, ramp(10) + 20 * number, 5, None if silent else tone(2, 300 + 60 * number))
    return path.read_bytes()


def crema_d_site(folder: Path) -> Path:
    """The zip of the repository, the videos, and the published lists: every actor is in both."""
    folder.mkdir(parents=True)
    made = folder / "made.flv"
    videos = {
        emotion: write_flv(made, ramp(10) + 20 * number, 5, tone(2, 300 + 60 * number))
        for number, emotion in enumerate(crema_d.EMOTIONS)
    }
    clips = {name: videos[name.split("_")[2]] for name in CREMA_D_CLIPS}
    clips[CREMA_D_SILENT] = write_flv(made, ramp(10), 5, None)
    made.unlink()
    write_crema_d(folder, clips | {"1064_TIE_SAD_XX": b"no duration"})
    for file, names in CREMA_D_PUBLISHED.items():
        (folder / file).write_text("".join(f"{name},{name.split('_')[2]}\n" for name in names))
    return folder


def ave_archive(folder: Path) -> dict[str, bytes]:
    """The files of the archive, made in `folder`: the lists, and all videos but one."""
    speech = {row.split("&")[1] for rows in AVE_LISTS.values() for row in rows if row.startswith(SPEECH)}
    contents = [write_mp4(folder / "made.mp4", number) for number in (0, 6)]
    (folder / "made.mp4").unlink()
    return ave_members(AVE_LISTS, {video: contents[video in speech] for video in sorted(AVE_VIDEOS - {AVE_MISSING})})


def ave_site(folder: Path) -> Path:
    """The archive."""
    folder.mkdir(parents=True)
    return write_zip(folder / ave.ARCHIVE, ave_archive(folder)).parent


def ravdess_clips() -> list[str]:
    """Names of the clips with sound: each emotion of each actor once."""
    numbers = range(1, len(ravdess.EMOTIONS) + 1)
    return [f"01-01-{number:02}-01-01-02-{actor}" for actor in RAVDESS_ACTORS for number in numbers]


def ravdess_site(folder: Path) -> Path:
    """The archives of all 24 actors, and the record with their MD5."""
    folder.mkdir(parents=True)
    made = folder / "made.mp4"
    silent = write_mp4(made, 0, silent=True)
    videos = [write_mp4(made, number) for number in range(len(ravdess.EMOTIONS))]
    made.unlink()
    archives = {actor: {f"02-01-01-01-01-02-{actor}.mp4": silent} for actor in ravdess.ACTORS}
    for name in ravdess_clips():
        archives[name[-2:]][f"{name}.mp4"] = videos[int(name.split("-")[2]) - 1]
    write_ravdess(folder, archives)
    return folder
