"""The admin's door: the one sign-in of the site, for whom their role lets in."""

from typing import Any

from django.contrib import admin
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, URLResolver
from django.utils.decorators import method_decorator
from django.utils.translation import gettext_lazy as _

PASSWORD_PAGES = {"password_change", "password_change_done"}


class AuditorSite(admin.AdminSite):
    """What is registered here is read-only for everybody: see refunds/admin.py."""

    site_title = _("返金ダッシュボード")
    site_header = _("返金ダッシュボード — 監査")
    index_title = _("記録の閲覧")
    enable_nav_sidebar = False

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """Without Django's pages for passwords: there are none."""
        return [each for each in super().get_urls() if getattr(each, "name", None) not in PASSWORD_PAGES]

    @method_decorator(login_not_required)  # it is the way there
    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """There is no password form: who is not signed in goes to the company's sign-in, others have no access."""
        if request.user.is_authenticated:
            raise PermissionDenied
        return redirect_to_login(request.GET.get(REDIRECT_FIELD_NAME, "/admin/"))
