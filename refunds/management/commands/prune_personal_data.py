from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from refunds import retention


class Command(BaseCommand):
    help = (
        "Remove names and mails of orders older than RETENTION_DAYS, and searches older than 30 days. The worker does "
        "the same every hour."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only count what would be removed")

    def handle(self, *args: Any, **options: Any) -> None:
        removed = retention.prune(dry_run=options["dry_run"])
        word = "to be removed" if options["dry_run"] else "removed"
        self.stdout.write(
            f"RETENTION_DAYS={settings.RETENTION_DAYS or ''} {word}: customers of {removed.orders} orders, "
            f"{removed.searches} searches"
        )
