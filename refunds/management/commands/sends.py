from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from refunds import services


class Command(BaseCommand):
    help = "Stop or resume sending refunds to Smartpay. Reading and settling go on either way."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("switch", choices=["on", "off"])
        parser.add_argument("--reason", required=True, help="kept in the trail and shown on every page")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            services.set_sends(enabled=options["switch"] == "on", reason=options["reason"])
        except services.NotReconciled as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"sends: {options['switch']}")
