"""What changed in a sandbox, kept in a file: `make run` starts where it was left.

Without it a fresh Smartpay would know nothing of the refunds that the dashboard's database remembers.
"""

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """A file of JSON lines: a heading that says which world it belongs to, then one line a change."""

    def __init__(self, path: Path, *, seed: int, orders: int, now: int) -> None:
        """Open or begin a journal. ValueError if the file belongs to another world."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._heading: dict[str, Any] = {"seed": seed, "orders": orders, "epoch": now}
        self.lines: list[dict[str, Any]] = []
        self._read()
        if (self._heading["seed"], self._heading["orders"]) != (seed, orders):
            raise ValueError(
                f"{path} belongs to --seed {self._heading['seed']} --orders {self._heading['orders']}:"
                " start with these, or remove the file"
            )
        self.epoch: int = self._heading["epoch"]
        self._file = path.open("a", encoding="utf-8")

    def append(self, line: dict[str, Any]) -> None:
        """Write one change; it is in the file before its request is answered."""
        self._file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
        self._file.flush()

    def clear(self) -> None:
        """Forget all changes."""
        self._file.close()
        self._write([self._heading])
        self._file = self._path.open("a", encoding="utf-8")

    def _read(self) -> None:
        whole = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        # A process killed while writing leaves half a line. That request was not answered either.
        complete = whole[: whole.rfind("\n") + 1].splitlines()
        if complete:
            self._heading, *self.lines = map(json.loads, complete)
        if not complete or not whole.endswith("\n"):
            self._write([self._heading, *self.lines])

    def _write(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        beside = self._path.with_name(self._path.name + ".new")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, self._path)
