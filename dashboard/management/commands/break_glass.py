import getpass
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.urls import reverse

from dashboard import break_glass


class Command(BaseCommand):
    help = "Let one person in for minutes while the identity provider is dead. Raises an alarm, and is on the trail."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", help="who it is; shown with (緊急用) behind it")
        parser.add_argument("--role", choices=break_glass.ROLES)
        parser.add_argument("--minutes", type=int, default=30, help=f"1 to {break_glass.MOST_MINUTES}")
        parser.add_argument("--end", action="store_true", help="end every code and session of this kind, now")
        parser.add_argument("--reason", required=True, help="kept in the trail")

    def handle(self, *args: Any, **options: Any) -> None:
        told = {"reason": options["reason"], "account": _account()}
        if options["end"]:
            self.stdout.write(f"ended: {break_glass.end_all(**told)}")
            return
        name, role, minutes = options["name"], options["role"], options["minutes"]
        if not name or not role:
            raise CommandError("--name and --role, or --end.")
        try:
            code = break_glass.issue(name=name, role=role, minutes=minutes, **told)
        except ValueError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Within {minutes} minutes, once, at {reverse('break_glass')}:\n{code}")


def _account() -> str:
    """Return the account that runs this command, or "" if the system does not know it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
