"""Warm starts: a server process that has imported the libraries and forks one process per stage.

Importing PyTorch takes seconds, most of the time of a short stage. The first stage of a DVC process also starts the
server, `python -m avdistill.pipeline.warm`. Once the server has imported the libraries, `python -m stages` sends its
stage there: arguments, working directory, environment and the file descriptors 0 to 2. A flow, which starts one DVC
process per stage, sets AV_WARM to its own process id, so that all of its stages share one server. If no server answers,
or its code differs, the stage runs in the process of `python -m stages`, with the same result. A stage is killed if the
process that requested it or the server ends, in whatever way; the server exits with the DVC process or flow.

Linux only: it needs pidfd_open and PR_SET_PDEATHSIG to detect the end of other processes reliably.
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
REQUEST_TIMEOUT = 5.0  # s to receive a whole request
PR_SET_PDEATHSIG = 1
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Request(NamedTuple):
    """A stage to run: digest of the client's code, arguments, working directory, environment variables."""

    code: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]


# --- client ----------------------------------------------------------------------------------------------------------


def hand_over(arguments: list[str]) -> int | None:
    """Run a stage on the warm server and return its exit code; None if the caller must run it."""
    if sys.platform != "linux" or (folder := server_folder()) is None:
        return None
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(str(folder / SOCKET))
            _send(server, Request(digest(), arguments, os.getcwd(), dict(os.environ)))  # noqa: PTH109 - JSON needs a str
            for number in FORWARDED:
                signal.signal(number, lambda number, _: server.send(bytes([number])))
            accepted = server.recv(1)
        except OSError:
            accepted = b""
        if not accepted:
            reset_signals()
            return None
        answer = b""
        with suppress(OSError):
            answer = server.recv(4, socket.MSG_WAITALL)
    if len(answer) < 4:
        print("error: the warm server ended before this stage was finished; run it again", file=sys.stderr)
        return 1
    (code,) = struct.unpack("i", answer)
    return int(code) if code >= 0 else 128 - int(code)  # 128 + signal number, as in a shell


def server_folder() -> Path | None:
    """Return the folder of this checkout's server owned by process AV_WARM, or by the DVC process above this one.

    If the folder does not exist, start the server; it listens only when its imports are done, because until then it
    could not notice that a client has ended. Returns None if there is no owner or no server can be used."""
    owner = os.environ.get(VARIABLE) or str(os.getppid() if "DVC_STAGE" in os.environ else "off")
    if not owner.isdecimal():
        return None
    try:
        processes = Path("/proc/self/ns/pid").stat().st_ino  # containers may share /tmp but not process ids
        # A server runs its own checkout's code, which may be deleted while another checkout with the same code is used.
        # The name is short, because the path of a socket has at most 107 bytes.
        name = hashlib.sha256(f"{processes} {owner} {ROOT}".encode()).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"avdistill-{os.getuid()}-{name}"
        if not folder.exists():
            folder.mkdir(0o700)
            launch(folder, owner)
        return folder if folder.lstat().st_uid == os.getuid() else None
    except OSError:
        return None


def launch(folder: Path, owner: str) -> None:
    """Start a server that listens in `folder` and exits with process `owner`, removing the folder."""
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
    """Return the environment variables to set before PyTorch's OpenMP runtime (libgomp) is loaded.

    By default, its threads spin so long while waiting that two stages with two threads each take four times as long on
    two cores as with this shorter spin count; the speed of a single stage is not affected."""
    return {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000")}


def _send(server: socket.socket, request: Request) -> None:
    content = json.dumps(request).encode()
    socket.send_fds(server, [struct.pack("Q", len(content))], [0, 1, 2])
    server.sendall(content)


# --- server ----------------------------------------------------------------------------------------------------------


class ForkServer:
    """Import the libraries and fork a process per request. `serve` returns only in the forked processes."""

    def __init__(self, folder: Path, owner: int) -> None:
        """Import the libraries and listen. Exits with process `owner`; raises ProcessLookupError if it has ended."""
        self.owner = os.pidfd_open(owner)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / SOCKET))  # before the imports: fails if the path is too long
        self.code = digest()
        for library in LIBRARIES:
            with suppress(Exception):  # the stage that needs the library raises the error again
                import_module(library)
        self.listener.listen(64)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.owner, selectors.EVENT_READ)
        self.children: set[int] = set()

    def serve(self) -> list[str]:
        """Serve requests until the owner ends. Returns, in each forked process, the arguments of its stage."""
        while True:
            for key, _ in self.selector.select():
                if key.fd == self.owner:
                    raise SystemExit
                if key.data is not None:
                    self.handle_event(*key.data)
                elif (arguments := self.accept()) is not None:
                    return arguments

    def accept(self) -> list[str] | None:
        """Receive a request and fork for it, or close it. Returns the arguments in the forked process, else None."""
        client, _ = self.listener.accept()
        client.settimeout(REQUEST_TIMEOUT)
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
            set_up_process(request, files)
            return request.arguments
        for file in files:
            os.close(file)
        with suppress(OSError):
            os.setpgid(child, child)
        client.setblocking(False)
        ended = os.pidfd_open(child)
        watched = (child, client, ended)
        self.children.add(child)
        with suppress(OSError):
            client.send(b"y")
        self.selector.register(client, selectors.EVENT_READ, watched)
        self.selector.register(ended, selectors.EVENT_READ, watched)
        return None

    def handle_event(self, child: int, client: socket.socket, ended: int) -> None:
        """Forward the client's signals to a stage, kill it if the client has ended, or send its exit code."""
        if child not in self.children:  # client and stage ended together, and the first event was handled
            return
        try:
            signals = client.recv(16)
            for number in signals:
                os.kill(child, number)
            if not signals:  # the client has ended
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


def set_up_process(request: Request, files: list[int]) -> None:
    """Give this forked process the standard streams, environment and working directory of the request."""
    os.setpgid(0, 0)
    end_with_parent(signal.SIGKILL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    reset_signals()
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)


def reset_signals() -> None:
    """Restore Python's default signal handlers."""
    for number in FORWARDED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def digest() -> str:
    """Return the SHA-256 of all files of our packages: the server must not run a stage with outdated code."""
    total = hashlib.sha256()
    for package in ("avdistill", "models", "stages"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                total.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
                total.update(path.read_bytes())
    return total.hexdigest()


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send a signal to this process when its parent ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # the parent ended before the call
        os.kill(os.getpid(), number)


def _main(folder: str, owner: str) -> list[str]:
    own = os.getpid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        return ForkServer(Path(folder), int(owner)).serve()
    except ProcessLookupError:  # the owner has already ended
        raise SystemExit from None
    finally:
        if os.getpid() == own:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    arguments = _main(*sys.argv[1:])
    from avdistill.pipeline.stage import run

    run(arguments)
