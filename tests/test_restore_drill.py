"""The restore drill of docs/operations.md, run as it is written there, with real processes."""

from pathlib import Path

import pytest
from django.db import connection

from scripts import postgres, restore_drill

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.skipif(
        connection.vendor == "postgresql" and postgres.programs() is None,
        reason="no server to dump and restore",
    ),
]


def test_reconcile_finds_and_repairs_exactly_what_a_restored_database_has_lost(tmp_path: Path) -> None:
    result = restore_drill.drill(tmp_path)

    print(result)
    assert result.passed, str(result)
