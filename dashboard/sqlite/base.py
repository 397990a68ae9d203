"""SQLite as Django has it, for connections that are kept: one is given up where another file took its file's place.

A connection of its own for each request costs more than what most pages ask of it: the schema is parsed anew, every
statement is compiled anew, and who closes the last one writes the whole log back. Kept without a look, it would go on
reading and writing a file that was moved away when a backup took its place. That does not make it safe to move one
there while others have the old file open: their log stays at its path. See "restore" in docs/operations.md.
"""

from pathlib import Path
from typing import Any

from django.db.backends.sqlite3 import base


class DatabaseWrapper(base.DatabaseWrapper):
    opened: tuple[int, int] | None = None

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        self.opened = self.file()  # before: whatever is put there from now on is seen
        return super().get_new_connection(conn_params)

    def is_usable(self) -> bool:
        """Asked by Django before the first statement of each request: see CONN_HEALTH_CHECKS."""
        return self.file() == self.opened

    def file(self) -> tuple[int, int] | None:
        """Which file stands at the database's path now; None without one, as for a database in memory."""
        try:
            found = Path(self.settings_dict["NAME"]).stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino
