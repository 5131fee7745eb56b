from __future__ import annotations

import pytest

from avdistill.pipeline.errors import UserError, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:secret@host:5000/path: away", "at http://***@host:5000/path: away"),
        ("postgresql+psycopg2://me:se@cret@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("https://token@a/b and ftp://x:y@z", "https://***@a/b and ftp://***@z"),
        ("http://host/a@b?mail=me@there", "http://host/a@b?mail=me@there"),
        ("http://host?mail=me@there", "http://host?mail=me@there"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("student@best", "student@best"),
    ],
)
def test_no_password_is_shown(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert str(UserError(text)) == shown
