from typing import Any

from django.core.management.base import BaseCommand, CommandError

from refunds import services, smartpay


class Command(BaseCommand):
    help = (
        "Take a turn for each refund that is due, at most a hundred: send what waits, find out what is unknown. "
        "Then read all of Smartpay's refunds, if a proof waits for that. Once, then end."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        turns = services.settle_due(client=smartpay.client())
        self.stdout.write(f"refunds due: {turns}")
        try:
            services.scan_if_needed(client=smartpay.client())
        except smartpay.SmartpayError as error:
            raise CommandError(f"Smartpay's refunds could not be read ({error.about}).") from error
