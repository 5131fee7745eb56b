"""Bounds of the server, with an application that only counts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from flows import model
from flows.model import Bounded, Message


class Client:
    """One request, whose body comes in pieces: bytes, or seconds to wait."""

    def __init__(
        self, *pieces: bytes | float, length: int | None = None, kind: bytes | None = b"application/json"
    ) -> None:
        self.pieces = list(pieces)
        headers = [] if length is None else [(b"content-length", str(length).encode())]
        headers += [] if kind is None else [(b"content-type", kind)]
        self.scope: dict[str, Any] = {"type": "http", "method": "POST", "headers": headers}
        self.answers: list[Message] = []

    async def receive(self) -> Message:
        while self.pieces and isinstance(self.pieces[0], float):
            await asyncio.sleep(float(self.pieces.pop(0)))  # type: ignore[arg-type]
        if not self.pieces:
            return {"type": "http.disconnect"}
        body = self.pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(self.pieces)}

    async def send(self, message: Message) -> None:
        self.answers.append(message)

    @property
    def status(self) -> int:
        return int(self.answers[0]["status"])


class Slow:
    """Takes `seconds` for an answer and keeps the bodies that it got."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        await asyncio.sleep(self.seconds)
        await send({"type": "http.response.start", "status": 200, "headers": []})


def ask(server: Bounded, *clients: Client) -> list[int]:
    async def all_at_once() -> None:
        await asyncio.gather(*(server(client.scope, client.receive, client.send) for client in clients))

    asyncio.run(all_at_once())
    assert server.held == 0
    return [client.status for client in clients if client.answers]


def test_a_body_comes_whole() -> None:
    application = Slow()
    assert ask(Bounded(application, 10, 10), Client(b"12", 0.01, b"34", b"")) == [200]
    assert application.bodies == [b"1234"]


@pytest.mark.parametrize(
    ("client", "left"), [(Client(b"1", b"2", length=5), 2), (Client(b"123", b"45", b"6"), 1), (Client(b"12345"), 0)]
)
def test_too_large(client: Client, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose length is said is refused before any of it is read; what comes is thrown away for a moment."""
    monkeypatch.setattr(model, "LINGER", 0.05)
    application = Slow()
    assert ask(Bounded(application, 4, 100), client) == [413]
    assert (b"connection", b"close") in client.answers[0]["headers"]
    assert application.bodies == []


@pytest.mark.parametrize("kind", [None, b"", b"application/vnd.apache.parquet", b"application/jsonx", b"\xff"])
def test_other_types_are_refused(kind: bytes | None) -> None:
    """MLflow would unpack Parquet, of whatever size, and answer 500 where there is no type."""
    application = Slow()
    client = Client(b"12", kind=kind)
    assert ask(Bounded(application, 10, 10), client) == [415]
    assert b"expected Content-Type application/json or text/csv, found" in client.answers[1]["body"]
    assert ask(Bounded(application, 10, 10), Client(b"12", kind=b"text/csv; charset=utf-8")) == [200]
    assert application.bodies == [b"12"]


@pytest.mark.parametrize("value", [b"{},", b"[", b"a\n"])
def test_many_values(value: bytes) -> None:
    """Gigabytes as Python's objects."""
    application, size = Slow(), 10**6
    assert ask(Bounded(application, size, size), Client(value * (model.VALUES + 1))) == [413]
    assert application.bodies == []
    assert ask(Bounded(application, size, size), Client(value * (model.VALUES // 2))) == [200]


def test_room_for_all_bodies_together() -> None:
    statuses = ask(Bounded(Slow(0.2), 10, 25), *(Client(b"1234567890") for _ in range(5)))
    assert sorted(statuses) == [200, 200, 503, 503, 503]


def test_slow_bodies_are_given_up_and_hold_up_nobody() -> None:
    slow = [Client(b"1", 0.3, b"2") for _ in range(50)]
    before = time.monotonic()
    statuses = ask(Bounded(Slow(), 10, 100, patience=0.1), *slow, Client(b"12"))
    assert statuses == [408] * 50 + [200]
    assert time.monotonic() - before < 50 * 0.3, "they were waited for one after the other"


def test_a_client_that_goes_away_leaves_nothing_behind() -> None:
    application = Slow()
    assert ask(Bounded(application, 10, 10), Client(b"1", 0.01)) == []
    assert application.bodies == []
