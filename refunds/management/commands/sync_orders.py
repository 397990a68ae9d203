from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from refunds import scanning, services, smartpay


class Command(BaseCommand):
    help = "Bring the mirror of orders, customers and refunds up to date; a run that was killed goes on at its page."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--full", action="store_true", help="from the start, all pages")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            scanning.sync(
                smartpay.client(),
                full=options["full"],
                observe=services.observe_refund,
                progress=self.stdout.write,
            )
        except smartpay.SmartpayError as error:
            raise CommandError(
                f"Smartpay could not be read ({error.about}); run it again to go on."
            ) from error
