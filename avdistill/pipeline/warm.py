"""Warm starts: a process that has the libraries loaded, and forks once for each stage.

To load PyTorch takes seconds, which is most of what a short stage takes. The first stage that a DVC process starts
starts `python -m avdistill.pipeline.warm` too; once that has loaded, `python -m stages` hands its stage over there:
arguments,
working folder, environment and open files. A flow, which starts a DVC process for each stage, gives its own process
number in AV_WARM, so that all of them share one server. Where nobody answers, or its code is another one, the stage
starts by itself, and nothing else differs. A stage ends with whoever asked for it, and all end with the server,
however those end; the server ends with that DVC process or flow.

For Linux alone: nothing else tells a process of the end of another one so surely.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

VARIABLE = "AV_WARM"
ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = [
    "avdistill.pipeline.stage",
    "torch",
    "stages.train",
    "stages.evaluate",
    "torchvision.models",
    "sklearn.metrics",
]
LIBRARIES += ["matplotlib.figure", "stages.figures", "stages.cost", "stages.report", "torchaudio"]
SOCKET = "warm"
PATIENCE = 5.0  # seconds for a request to come whole
PR_SET_PDEATHSIG = 1
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Request(NamedTuple):
    """A stage to run: with which code, its arguments, where, and with which environment."""

    code: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]


# The side that asks


def hand_over(arguments: list[str]) -> int | None:
    """Have a stage run by the server that is there for it; its exit code. None if it is to be run here."""
    if sys.platform != "linux" or (folder := server_folder()) is None:
        return None
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(str(folder / SOCKET))
            _send(server, Request(digest(), arguments, os.getcwd(), dict(os.environ)))  # noqa: PTH109 - as text
            for number in FORWARDED:
                signal.signal(number, lambda number, _: server.send(bytes([number])))
            accepted = server.recv(1)
        except OSError:
            accepted = b""
        if not accepted:
            usual_signals()
            return None
        answer = b""
        with suppress(OSError):
            answer = server.recv(4, socket.MSG_WAITALL)
    if len(answer) < 4:
        print("error: the process that ran this stage has gone", file=sys.stderr)
        return 1
    (code,) = struct.unpack("i", answer)
    return int(code) if code >= 0 else 128 - int(code)  # as a shell says that a signal ended it


def server_folder() -> Path | None:
    """Folder of the server that ends with the process AV_WARM names, or with the DVC that started this one.

    If there is no such folder yet, the server is started; it listens once it has loaded its libraries: before, it
    could not look whether whoever asked is still there. None if there is none to be."""
    owner = os.environ.get(VARIABLE) or str(os.getppid() if "DVC_STAGE" in os.environ else "off")
    if not owner.isdecimal():
        return None
    try:
        processes = Path("/proc/self/ns/pid").stat().st_ino  # a container counts its own, and may share this folder
        folder = Path(tempfile.gettempdir()) / f"avdistill-{os.getuid()}-{processes}-{owner}"
        if not folder.exists():
            folder.mkdir(0o700)
            launch(folder, owner)
        return folder if folder.lstat().st_uid == os.getuid() else None
    except OSError:
        return None


def launch(folder: Path, owner: str) -> None:
    """Start a server that listens in `folder`, which it takes away when it ends, with process `owner` at the latest."""
    subprocess.Popen(
        [sys.executable, "-m", "avdistill.pipeline.warm", str(folder), owner],
        cwd=ROOT,
        env=os.environ | threads(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def threads() -> dict[str, str]:
    """What PyTorch's OpenMP (libgomp) has to find in the environment when it is loaded, if nothing is there yet.

    Its threads wait for each other by spinning, for so long that two stages with two threads each, on two cores, take
    four times as long as with this; one by itself takes no longer."""
    return {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000")}


def _send(server: socket.socket, request: Request) -> None:
    content = json.dumps(request).encode()
    socket.send_fds(server, [struct.pack("Q", len(content))], [0, 1, 2])
    server.sendall(content)


# The side that runs


class ForkServer:
    """Loads, and forks. `serve` returns in the forked processes only, with what they are to do."""

    def __init__(self, folder: Path, owner: int) -> None:
        """`owner`: number of the process to end with. Raises ProcessLookupError if that has ended."""
        self.owner = os.pidfd_open(owner)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / SOCKET))  # fails at once where the path is too long for a socket
        self.code = digest()
        for library in LIBRARIES:
            with suppress(Exception):  # whatever one of them raises, its stage will tell
                import_module(library)
        self.listener.listen(64)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.owner, selectors.EVENT_READ)
        self.children: set[int] = set()

    def serve(self) -> list[str]:
        """Answer until the owner ends; a forked process returns with the arguments of its stage."""
        while True:
            for key, _ in self.selector.select():
                if key.fd == self.owner:
                    raise SystemExit
                if key.data is not None:
                    self.look(*key.data)
                elif (arguments := self.begin()) is not None:
                    return arguments

    def begin(self) -> list[str] | None:
        """Take one request: fork and accept it, or close it. Returns in the forked process alone with something."""
        client, _ = self.listener.accept()
        client.settimeout(PATIENCE)
        files: list[int] = []
        try:
            head, files, _, _ = socket.recv_fds(client, 8, 3)
            (size,) = struct.unpack("Q", head)
            request = Request(*json.loads(client.recv(size, socket.MSG_WAITALL)))
            if len(files) != 3 or not request.code == self.code == digest():
                raise ValueError
            child = os.fork()
        except (OSError, ValueError, struct.error):
            client.close()
            for file in files:
                os.close(file)
            return None
        if not child:
            self.listener.close()
            os.close(self.owner)
            client.close()
            become(request, files)
            return request.arguments
        for file in files:
            os.close(file)
        with suppress(OSError):
            os.setpgid(child, child)
        client.setblocking(False)
        ended = os.pidfd_open(child)
        known = (child, client, ended)
        self.children.add(child)
        with suppress(OSError):
            client.send(b"y")
        self.selector.register(client, selectors.EVENT_READ, known)
        self.selector.register(ended, selectors.EVENT_READ, known)
        return None

    def look(self, child: int, client: socket.socket, ended: int) -> None:
        """Something has come of a stage: signals of the one who asked, or its end, or that of the stage."""
        if child not in self.children:  # both ended at once, and this is the second to be told
            return
        try:
            wanted = client.recv(16)
            for number in wanted:
                os.kill(child, number)
            if not wanted:  # whoever asked has gone
                os.killpg(child, signal.SIGKILL)
        except BlockingIOError:
            pass
        except OSError:
            with suppress(OSError):
                os.killpg(child, signal.SIGKILL)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            self.children.remove(child)
            with suppress(OSError):
                client.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
            for file in (client, ended):
                self.selector.unregister(file)
            client.close()
            os.close(ended)


def become(request: Request, files: list[int]) -> None:
    """Make this forked process the one that was asked for."""
    os.setpgid(0, 0)
    end_with_parent(signal.SIGKILL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    usual_signals()
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)


def usual_signals() -> None:
    """Let signals do what they do to a Python program by itself."""
    for number in FORWARDED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def digest() -> str:
    """Of all of our code and templates, wherever they lie: what was loaded must not run as something else."""
    found = hashlib.sha256()
    for package in ("avdistill", "models", "stages"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                found.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
                found.update(path.read_bytes())
    return found.hexdigest()


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the one that started it ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def _main(folder: str, owner: str) -> list[str]:
    own = os.getpid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        return ForkServer(Path(folder), int(owner)).serve()
    except ProcessLookupError:  # the owner has ended before
        raise SystemExit from None
    finally:
        if os.getpid() == own:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    arguments = _main(*sys.argv[1:])
    from avdistill.pipeline.stage import run

    run(arguments)
