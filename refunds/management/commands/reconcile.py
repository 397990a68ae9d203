from argparse import ArgumentParser
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from refunds import reconciling, smartpay, spreadsheet
from refunds.models import Difference, Reconciliation

COLUMNS = ["equal", "only_ours", "only_theirs", "differing", "ours_total", "theirs_total"]


class Command(BaseCommand):
    help = (
        "Compare the ledger with all of Smartpay's refunds, for Japanese days. Books what Smartpay shows, sends "
        "nothing. Exits with 0: equal; 1: differences; 2: could not be compared."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--from",
            dest="first",
            metavar="DAY",
            help=f"2026-04-01; default: {reconciling.DAYS - 1} days before --to",
        )
        parser.add_argument("--to", dest="last", metavar="DAY", help="default: today")
        parser.add_argument(
            "--csv",
            metavar="FILE",
            help="the differences, for Excel; - prints them in the place of the table",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        last = _day(options["last"]) or timezone.localdate()
        first = _day(options["first"]) or last - timedelta(days=reconciling.DAYS - 1)
        if not first <= last <= timezone.localdate():
            raise CommandError("Not a span of days up to today.", returncode=2)
        try:
            days = reconciling.reconcile(first, last, client=smartpay.client())
        except smartpay.SmartpayError as error:
            raise CommandError(
                f"Smartpay could not be read ({error.about}); nothing was compared.", returncode=2
            ) from error
        found = list(
            Difference.objects.filter(reconciliation__in=days).order_by("reconciliation_id", "at", "id")
        )
        if options["csv"] != "-":
            self._print(days, found)
        if options["csv"]:
            self._write(options["csv"], found)
        if found:
            raise CommandError(f"differences: {len(found)}", returncode=1)

    def _print(self, days: list[Reconciliation], found: list[Difference]) -> None:
        self.stdout.write("day       " + "".join(f"{name:>13}" for name in COLUMNS))
        for day in days:
            self.stdout.write(f"{day.day}" + "".join(f"{getattr(day, name):>13}" for name in COLUMNS))
        for row in reconciling.rows(found):
            told = zip(reconciling.HEADING, row, strict=True)
            self.stdout.write(" ".join(f"{name}={value}" for name, value in told if value not in (None, "")))

    def _write(self, path: str, found: list[Difference]) -> None:
        text = "".join(spreadsheet.lines(reconciling.HEADING, reconciling.rows(found)))
        if path == "-":
            self.stdout.write(text, ending="")
            return
        try:
            Path(path).write_text(text, newline="")
        except OSError as error:
            raise CommandError(f"{path} could not be written: {error.strerror}", returncode=2) from error


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError as error:
        raise CommandError(f"{text} is not a day such as 2026-04-01.", returncode=2) from error
