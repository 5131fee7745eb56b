"""The best student of a dataset behind HTTP: python -m flows.model [DATASET] [--host ADDRESS] [--port N]

MLflow's scoring server, as `mlflow models serve` starts it, with bounds: it would take requests of any size and any
number. A body that is too large is refused (413), one that comes too slowly is given up (408), and where those that
wait for their answers fill the room, further ones are refused (503). avdistill/serving/recognise.py says what it is
asked.

It listens on this machine only unless another address is asked for, and then takes no paths of its files.

Environment: MLFLOW_TRACKING_URI, where the model is registered; AV_SERVE_MB (64), the largest video, and the other
limits of avdistill/serving/recognise.py; MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT (60), seconds that an answer may take.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

# Nothing of stages/ and models/: the model brings the code that it was made with.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

HOST = "127.0.0.1"
BODIES = 4  # of the largest size, or as many smaller ones as take the same room
PATIENCE = 30.0  # seconds for a body to come
LINGER = 2.0  # seconds in which what still comes of a refused body is thrown away, so that its sender reads the answer
CONNECTIONS = 900  # below the 1024 files that a process may commonly open


class Bounded:
    """An ASGI application in front of another one, that hands on whole bodies of at most `largest` bytes.

    All bodies whose answers are not yet made take at most `room` bytes together; one has `patience` seconds to come."""

    def __init__(self, application: Application, largest: int, room: int, patience: float = PATIENCE) -> None:
        self.application, self.largest, self.room, self.patience = application, largest, room, patience
        self.held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        body = bytearray()
        more = True
        try:
            refusal = self._refusal(int(dict(scope["headers"]).get(b"content-length", 0)))
            try:
                async with asyncio.timeout(self.patience):
                    while more and refusal is None:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            return
                        body += message.get("body", b"")
                        self.held += len(message.get("body", b""))
                        more = message.get("more_body", False)
                        refusal = self._refusal(len(body))
            except TimeoutError:
                refusal = 408, f"the body did not come within {self.patience:g} s"
            if refusal is not None:
                await _refuse(*refusal, receive, send)
                return
            whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

            async def replay() -> Message:
                return whole.pop() if whole else await receive()

            await self.application(scope, replay, send)
        finally:
            self.held -= len(body)

    def _refusal(self, size: int) -> tuple[int, str] | None:
        """Status and reason, if a body of `size` bytes is too large or finds no room."""
        if size > self.largest:
            return 413, f"the body is larger than {self.largest} bytes (AV_SERVE_MB)"
        if self.held > self.room:
            return 503, "too many requests wait for their answers; try again later"
        return None


async def _refuse(status: int, reason: str, receive: Receive, send: Send) -> None:
    """Answer without having read all, and end the connection."""
    headers = [(b"content-type", b"application/json"), (b"connection", b"close"), (b"retry-after", b"5")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    body = json.dumps({"message": reason}).encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})


def serve(model: str, host: str, port: int) -> None:
    """Serve a model of MLflow's registry until this process is interrupted."""
    if not ipaddress.ip_address(host).is_loopback:
        os.environ.setdefault("AV_SERVE_PATHS", "off")
    import mlflow.pyfunc
    import uvicorn
    from mlflow.pyfunc import scoring_server

    application = scoring_server.init(mlflow.pyfunc.load_model(model))
    # Base64 takes four bytes for three; what is around a video is small.
    largest = int(os.environ.get("AV_SERVE_MB") or 64) * 2**20 * 4 // 3 + 2**20
    uvicorn.run(Bounded(application, largest, BODIES * largest), host=host, port=port, limit_concurrency=CONNECTIONS)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.model", description="Serve the best student of a dataset.")
    parser.add_argument("dataset", nargs="?", default="avsynth")
    parser.add_argument("--host", default=HOST, help=f"an address of this machine (default: {HOST})")
    parser.add_argument("--port", type=int, default=5001)
    given = parser.parse_args()
    try:
        serve(f"models:/student-{given.dataset}@best", given.host, given.port)
    except KeyboardInterrupt:
        pass
    except Exception as error:  # noqa: BLE001 - the registry's, the network's, the model's
        from avdistill.pipeline.errors import redact

        sys.exit(f"error: student-{given.dataset}: {redact(' '.join(str(error).split()))}")


if __name__ == "__main__":
    _main()
