"""What may stand in a log."""

import io
import json
import logging
from typing import Any

import pytest
from django.conf import settings
from django.db import IntegrityError, connection

from dashboard.logs import place_and_kind


def logged(error: Exception) -> dict[str, Any]:
    """The line that the site's handler writes for a fault."""
    config: Any = settings.LOGGING
    formatter = config["formatters"]["json"]
    options = {name: value for name, value in formatter.items() if name != "()"}
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter["()"](**options))
    logger = logging.Logger("django.request")  # noqa: LOG001  (one of its own, with no other handler)
    logger.addHandler(handler)
    try:
        raise error
    except Exception:
        logger.exception("Internal Server Error: %s", "/orders/")
    [line] = stream.getvalue().splitlines()
    told: dict[str, Any] = json.loads(line)
    return told


def test_fault_tells_its_place_and_kind_and_not_its_words() -> None:
    told = logged(ValueError("田中 太郎 tanaka@example.jp\x1b[31m\r\n"))

    assert "田中" not in json.dumps(told, ensure_ascii=False)
    assert told["exception"].startswith("builtins.ValueError\n")
    assert "test_logs.py" in told["exception"]
    assert (told["event"], told["level"]) == ("Internal Server Error: /orders/", "error")


@pytest.mark.django_db
def test_row_that_the_database_refused_is_not_repeated() -> None:
    with pytest.raises(IntegrityError) as refused, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO refunds_search (id, person_id, text, created_at) VALUES ('x', NULL, '田中 太郎', NULL)"
        )

    words = place_and_kind((type(refused.value), refused.value, refused.tb))

    assert "田中" not in words
    assert words.startswith("django.db.utils.IntegrityError\n")
    assert "caused by" in words


def test_errors_that_name_each_other_end() -> None:
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one

    assert place_and_kind((ValueError, one, None)) == "builtins.ValueError\ncaused by builtins.KeyError"
