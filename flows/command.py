"""Run a flow from the command line."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import httpx
from prefect import Flow
from prefect.settings import PREFECT_CLOUD_API_URL

from avdistill.pipeline.errors import redact

ANSWER_SECONDS = 5.0


def run(flow: Flow[Any, Any], *arguments: Any, **named: Any) -> Any:
    """Run a flow and return its final state; end this process with one line if it fails, or if no server answers."""
    check_server()
    # Raise SystemExit instead of dying at once, so that Prefect's temporary server is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        state: Any = flow(*arguments, **named, return_state=True)
    except KeyboardInterrupt:
        sys.exit(130)
    if not state.is_completed():
        sys.exit(f"error: {state.message}")
    return state


def check_server() -> None:
    """End this process with one line if PREFECT_API_URL names a server that does not answer."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return
    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS, follow_redirects=True)
        # A proxy or another program may answer in its place. Of a wrong password, Prefect itself tells.
        if answer.status_code not in (401, 403) and not url.startswith(PREFECT_CLOUD_API_URL.value()):
            answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        sys.exit(
            f"error: PREFECT_API_URL: no server answers at {redact(url)} ({type(error).__name__}); start one with "
            "`make serve`, or unset PREFECT_API_URL to run without a server"
        )
