"""Serve the best student of a dataset over HTTP.

    python -m flows.model [DATASET] [--host ADDRESS] [--port N]

This is MLflow's scoring server, as `mlflow models serve` starts it, with limits, because it accepts requests of any
size and number. It answers 413 to a body that is too large or has too many values, 408 to one that arrives too slowly,
415 to one that is neither JSON nor CSV, and 503 while the bodies in progress use up the memory limit. See
avdistill/serving/recognise.py for the format of requests, limits.py beside it for the limits on videos.

By default it listens on this machine only. With another address it accepts no paths of files on the server.

Environment variables: MLFLOW_TRACKING_URI, where the model is registered; AV_SERVE_MB (64), the size of the largest
video, and the other limits in avdistill/serving/limits.py; MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT (60), seconds per
request.
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

# Imports nothing from stages/ and models/, because the registered model contains the code that it was trained with.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

HOST = "127.0.0.1"
BODIES = 4  # bodies of the largest size in memory at a time, or more smaller ones
PATIENCE = 30.0  # seconds for a body to arrive
LINGER = 2.0  # seconds to read and discard the rest of a refused body, so that its sender gets the answer
VALUES = 10_000  # values in a body, as Python's objects take a hundred times the room of "{},"
# MLflow reads Parquet, too, of which a few kB may become gigabytes.
TYPES = ("application/json", "text/csv")
CONNECTIONS = 900  # below the usual limit of 1024 open files per process


class Bounded:
    """ASGI middleware that limits the size of request bodies and the memory that they take.

    It passes on complete bodies of at most `largest` bytes. The bodies of unanswered requests may take `room` bytes in
    total, and each body has `patience` seconds to arrive."""

    def __init__(self, application: Application, largest: int, room: int, patience: float = PATIENCE) -> None:
        self.application, self.largest, self.room, self.patience = application, largest, room, patience
        self.held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        body = bytearray()
        more = True
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip()
        try:
            refusal = self._refusal(int(headers.get(b"content-length", 0)))
            if refusal is None and scope["method"] == "POST" and kind not in TYPES:
                refusal = 415, f"expected Content-Type {' or '.join(TYPES)}, found {kind[:80] or 'none'}"
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
                refusal = 408, f"the body did not arrive within {self.patience:g} s"
            if refusal is None and sum(map(body.count, b",[{\n")) > VALUES:
                refusal = 413, f"the body has more than {VALUES} values"
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
        """Return status and reason if a body of `size` bytes is too large or exceeds the memory limit, else None."""
        if size > self.largest:
            return 413, f"the body is larger than {self.largest} bytes (AV_SERVE_MB)"
        if self.held > self.room:
            return 503, "too many requests are in progress; try again later"
        return None


async def _refuse(status: int, reason: str, receive: Receive, send: Send) -> None:
    """Answer before the whole body has been read, and close the connection."""
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
    """Serve a model from MLflow's registry until this process is interrupted."""
    if not ipaddress.ip_address(host).is_loopback:
        os.environ.setdefault("AV_SERVE_PATHS", "off")
    import mlflow.pyfunc
    import uvicorn
    from mlflow.pyfunc import scoring_server

    application = scoring_server.init(mlflow.pyfunc.load_model(model))
    # Base64 takes four bytes for three; 1 MiB is ample for the rest of a request.
    largest = int(os.environ.get("AV_SERVE_MB") or 64) * 2**20 * 4 // 3 + 2**20
    uvicorn.run(Bounded(application, largest, BODIES * largest), host=host, port=port, limit_concurrency=CONNECTIONS)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.model", description="Serve the best student of a dataset.")
    parser.add_argument("dataset", nargs="?", default="avsynth")
    parser.add_argument("--host", default=HOST, help=f"address to listen on (default: {HOST})")
    parser.add_argument("--port", type=int, default=5001)
    given = parser.parse_args()
    try:
        serve(f"models:/student-{given.dataset}@best", given.host, given.port)
    except KeyboardInterrupt:
        pass
    except Exception as error:  # noqa: BLE001 - from the registry, the network or the model
        from avdistill.pipeline.errors import redact

        sys.exit(f"error: student-{given.dataset}: {redact(' '.join(str(error).split()))}")


if __name__ == "__main__":
    _main()
