from argparse import ArgumentParser, Namespace
from typing import Any

from django.core.management.base import BaseCommand

from refunds.sandbox import server


class Command(BaseCommand):
    help = "Runs Smartpay's merchant API on this machine: real HTTP, invented orders, no money."
    requires_system_checks: list[str] = []  # it needs nothing of the site, not even its database

    def add_arguments(self, parser: ArgumentParser) -> None:
        server.add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        server.run(Namespace(**options))
