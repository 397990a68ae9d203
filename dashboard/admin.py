"""The admin site: it uses the site's single sign-on and opens only to roles that may see it."""

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
    """The admin, where every registered model is read-only for everybody: see refunds/admin/."""

    site_title = _("返金ダッシュボード")
    site_header = _("返金ダッシュボード — 監査")
    index_title = _("記録の閲覧")
    enable_nav_sidebar = False

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """Return Django's URLs without the password pages: nobody has a password."""
        return [each for each in super().get_urls() if getattr(each, "name", None) not in PASSWORD_PAGES]

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """Return Django's list with the audit trail before everything else: that is what auditors come for."""
        apps: list[Any] = super().get_app_list(request, app_label)
        for app in apps:
            app["models"].sort(key=lambda model: model["object_name"] != "AuditEntry")
        return sorted(apps, key=lambda app: app["models"][0]["object_name"] != "AuditEntry")

    @method_decorator(login_not_required)
    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Redirect to the company's sign-in instead of showing a password form.

        Raises PermissionDenied for a person who is signed in: their role does not open the admin.
        """
        if request.user.is_authenticated:
            raise PermissionDenied
        return redirect_to_login(request.GET.get(REDIRECT_FIELD_NAME, "/admin/"))
