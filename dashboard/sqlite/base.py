"""Django's SQLite backend for persistent connections: it reconnects when another file has replaced the database's.

A new connection for each request costs more than the queries of most pages: SQLite parses the schema and compiles every
statement again, and closing the last connection writes the whole write-ahead log back. But a persistent connection
would go on reading and writing a file that was moved away when a backup took its place. This backend notices that. It
is still not safe to put a backup there while processes have the old file open, because their log stays at its path. See
"restore" in docs/operations.md.
"""

from pathlib import Path
from typing import Any

from django.db.backends.sqlite3 import base


class DatabaseWrapper(base.DatabaseWrapper):
    opened: tuple[int, int] | None = None

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        self.opened = self.file()  # before connecting: a file put there from now on is noticed
        return super().get_new_connection(conn_params)

    def is_usable(self) -> bool:
        """Django calls it before the first statement of each request: see CONN_HEALTH_CHECKS."""
        return self.file() == self.opened

    def file(self) -> tuple[int, int] | None:
        """Return device and inode of the file at the database's path; None without one, as for a database in memory."""
        try:
            found = Path(self.settings_dict["NAME"]).stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino
