from django.apps import AppConfig
from django.contrib.admin import apps as admin
from django.utils.translation import gettext_lazy as _


class DashboardConfig(AppConfig):
    """The site around the app: its users, and how they sign in."""

    name = "dashboard"
    verbose_name = _("利用者")

    def ready(self) -> None:
        from django.conf import settings

        from dashboard import checks  # noqa: F401  (registers its checks)
        from dashboard.sso import sessions  # noqa: F401  (connects its receiver)

        if settings.SENTRY_DSN:
            from dashboard import faults  # sentry_sdk is installed only where it is wanted

            faults.report_to(settings.SENTRY_DSN)


class AuditorAdminConfig(admin.AdminConfig):
    """Django's admin, for auditors."""

    default = False
    default_site = "dashboard.admin.AuditorSite"
