from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from refunds import csv_file, customers


class Command(BaseCommand):
    help = "Name the customers of orders by a CSV file of the merchant's own; a name from a checkout is never replaced."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="CSV, UTF-8 or Shift_JIS (CP932), with a heading")
        parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with options["file"].open("rb") as file:
                fates = customers.import_file(
                    file,
                    dry_run=options["dry_run"],
                    report=lambda number, fate: self.stdout.write(f"line {number}: {fate}"),
                )
        except (OSError, csv_file.BadFile) as error:
            raise CommandError(str(error)) from error
        counts = " ".join(f"{fate.replace(' ', '_')}={count}" for fate, count in sorted(fates.items()))
        self.stdout.write(
            f"{'dry run: ' if options['dry_run'] else ''}lines={fates.total()} {counts}".strip()
        )
