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
    for name in [name for name, value in os.environ.items() if not value]:
        del os.environ[name]  # left empty: not said
    environ.Env.read_env(BASE_DIR / ".state" / "embedded.env")
    from django.core.management import execute_from_command_line

    from dashboard import garbage

    garbage.seek_rarely()
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
