"""People who are signed in, and orders to look at, as JSON: `python -m scripts.bench.people COUNT`."""

import json
import sys
import time

import django


def main() -> None:
    django.setup()
    from django.conf import settings
    from django.contrib.auth.models import Group
    from django.contrib.sessions.backends.db import SessionStore

    from dashboard.models import User
    from refunds.models import Order

    operator, now = Group.objects.get(name="operator"), time.time()
    cookies = []
    for number in range(int(sys.argv[1])):
        person, new = User.objects.get_or_create(
            username=f"crowd-{number}", issuer="https://idp.example", subject=f"crowd-{number}"
        )
        if new:
            person.groups.set([operator])
        session = SessionStore()
        session.update(
            {
                "_auth_user_id": str(person.pk),
                "_auth_user_backend": "dashboard.sso.StrictOIDCBackend",
                "_auth_user_hash": person.get_session_auth_hash(),
                "auth_time": now,
                "signed_in_at": now,
                "seen_at": now,
                "oidc_id_token_expiration": now + 86400,
            }
        )
        session.create()
        cookies.append(f"{settings.SESSION_COOKIE_NAME}={session.session_key}")
    paid = Order.objects.filter(status=Order.Status.SUCCEEDED, refunded=0).order_by("-key")
    orders = list(paid.values_list("order_id", flat=True)[:2000])
    print(json.dumps({"cookies": cookies, "orders": orders}))


if __name__ == "__main__":
    main()
