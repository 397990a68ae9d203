"""`python -m tests.kills.racing MOMENT REFUND…`: take a turn for each refund at the very moment others do.

MOMENT is in seconds since 1970; the refunds follow each other by a tenth of a second.
"""

import os
import sys
import time
import uuid

from scripts.parents import end_with_parent


def main() -> None:
    import signal

    end_with_parent(signal.SIGKILL)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
    import django

    django.setup()
    from refunds import services, smartpay

    client, moment = smartpay.client(), float(sys.argv[1])
    for number, refund_id in enumerate(sys.argv[2:]):
        time.sleep(max(0, moment + number / 10 - time.time()))
        services.take_turn(uuid.UUID(refund_id), client=client)


if __name__ == "__main__":
    main()
