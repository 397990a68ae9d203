"""Back-channel logout: the provider ends sessions here by its own request, without the browser."""

import hashlib
import time

from django.contrib.auth.decorators import login_not_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from dashboard.models import SeenLogoutToken, SessionIndex
from dashboard.oidc_provider import UNAVAILABLE, UNPROVEN, SignInFailed, check_token
from dashboard.sso.sessions import LOGOUT_TOKENS_KEPT, end_sessions

LOGOUT_TOKEN_CLAIMS = ["iss", "aud", "iat", "exp", "jti", "events"]
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"


@csrf_exempt
@login_not_required
@require_POST
def backchannel_logout(request: HttpRequest) -> HttpResponse:
    """End the sessions that the provider's logout token names: one by `sid`, or all of a person's by `sub`.

    It answers 200; 400 to a token that is invalid, too old, or was carried out before; and 503 if the provider's keys
    cannot be read, so that the provider may repeat it.

    Source: OpenID Connect Back-Channel Logout 1.0, 2.5 to 2.8.
    """
    try:
        claims = check_token(request.POST.get("logout_token"), required=LOGOUT_TOKEN_CLAIMS, typ="logout+jwt")
        sid, subject, events = claims.get("sid"), claims.get("sub"), claims["events"]
        told = isinstance(events, dict) and events.get(LOGOUT_EVENT) == {}
        names = [name for name in (sid, subject) if name is not None]
        named = bool(names) and all(isinstance(name, str) and name for name in names)
        if not told or not named or "nonce" in claims:  # with a nonce it is an ID token
            raise SignInFailed(UNPROVEN, "logout_token")
        if claims["iat"] < time.time() - LOGOUT_TOKENS_KEPT.total_seconds():
            raise SignInFailed(UNPROVEN, "logout_token_age")
        jti = hashlib.sha256(claims["jti"].encode()).hexdigest()
        rows = SessionIndex.objects.filter(user__issuer=claims["iss"])
        # In one transaction: after a crash between the two, the repeat would be refused and no session ended.
        with transaction.atomic():
            if not SeenLogoutToken.objects.get_or_create(jti=jti)[1]:
                raise SignInFailed(UNPROVEN, "replayed")
            end_sessions(rows.filter(provider_session=sid) if sid else rows.filter(user__subject=subject))
    except SignInFailed as error:
        return HttpResponse(status=503 if error.problem is UNAVAILABLE else 400)
    return HttpResponse()
