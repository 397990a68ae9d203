"""What the bench needs from inside a data set, as JSON: a signed-in session a page, and what is typed."""

import json
import sys
from typing import Any

import django


def main() -> None:
    django.setup()
    from django.conf import settings
    from django.contrib.auth.models import Group
    from django.test import Client

    from dashboard.models import User
    from refunds.models import Order

    person, _new = User.objects.get_or_create(username="bench", defaults={"name": "測定 太郎"})
    person.groups.set(Group.objects.filter(name="operator"))

    def session() -> str:
        client = Client()
        client.force_login(person, backend="dashboard.sso.StrictOIDCBackend")
        return client.cookies[settings.SESSION_COOKIE_NAME].value

    newest = Order.objects.filter(status=Order.Status.SUCCEEDED).order_by("-key")
    some = newest.exclude(email="").exclude(reference="").exclude(family_kana="")[100]
    deep = Order.objects.order_by("-key").values_list("key", flat=True)[
        min(50_000, Order.objects.count() // 2)
    ]
    found: dict[str, Any] = {
        "cookie": settings.SESSION_COOKIE_NAME,
        "sessions": [session() for _ in range(int(sys.argv[1]))],
        "deep": f"o0.{deep:x}",
        "order": some.order_id,
        "payment": some.order_id.replace("order", "payment"),
        "mail": some.email,
        "reference": some.reference,
        "beginning": some.order_id[: len("order_test_") + 5],
        "tail": some.order_id[-5:],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
