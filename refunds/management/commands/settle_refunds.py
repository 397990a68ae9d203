from typing import Any

from django.core.management.base import BaseCommand

from refunds import services, smartpay


class Command(BaseCommand):
    help = (
        "Take a turn for every refund that is due: send what waits, find out what is unknown. Once, then end."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        turns = services.settle_due(client=smartpay.client())
        services.scan_if_needed(client=smartpay.client())
        self.stdout.write(f"refunds due: {turns}")
