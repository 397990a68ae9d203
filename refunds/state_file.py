"""Small files in STATE_DIR that outlive a process: one writer at a time on this machine, and no partial writes."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings


def path(name: str) -> Path:
    return Path(settings.STATE_DIR) / name


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the file's lock; wait while another process on this machine holds it. A process that dies releases it."""
    path(name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def replace(name: str, text: str) -> None:
    """Replace the file's text. If the machine stops meanwhile, it has the old text or the new one. Needs the lock."""
    new = path(f"{name}.new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path(name))
