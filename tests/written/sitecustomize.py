"""Keeps a copy of all that our processes write to their logs, and of what they counted, for scripts/test.py to scan.

Python imports it first of all, in the process of the tests and in each that they start: PYTHONPATH leads here.
"""

import atexit
import logging
import os
import sys
from pathlib import Path
from typing import Any

KEPT = Path(os.environ["KEPT_LOGS"])
emit: Any = logging.StreamHandler.emit


def keep(text: str) -> None:
    with (KEPT / f"{os.getpid()}.log").open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def emit_and_keep(handler: logging.Handler, record: logging.LogRecord) -> None:
    emit(handler, record)
    if type(handler.formatter).__name__ == "ProcessorFormatter":  # ours, and not pytest's
        keep(handler.format(record))


def keep_metrics() -> None:
    if "prometheus_client" in sys.modules:
        from prometheus_client import REGISTRY, generate_latest

        keep(generate_latest(REGISTRY).decode())


logging.StreamHandler.emit = emit_and_keep  # type: ignore[assignment, method-assign]
atexit.register(keep_metrics)
