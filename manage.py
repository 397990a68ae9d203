#!/usr/bin/env python
"""Django's command-line entry point."""

import os
import sys
from pathlib import Path

import environ

BASE_DIR = Path(__file__).resolve().parent


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
    # After `make run` or `make test` the commands speak to what these set up; the environment and `.env` win.
    environ.Env.read_env(BASE_DIR / ".env")
    embedded = BASE_DIR / ".state" / "embedded.env"
    for line in embedded.read_text().splitlines() if embedded.exists() else []:
        name, _, value = line.partition("=")
        if value and not os.environ.get(name):  # left empty: not said
            os.environ[name] = value
    from django.core.management import execute_from_command_line

    from dashboard import gc_tuning

    gc_tuning.raise_thresholds()
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
