"""The site map: the app, the admin, single sign-on, health."""

from django.contrib import admin
from django.contrib.auth.decorators import login_not_required
from django.urls import include, path
from django.views.i18n import set_language

from dashboard import break_glass, metrics, views
from dashboard.sso import backchannel
from dashboard.sso import views as sso_views

urlpatterns = [
    path("", include("refunds.urls")),
    path(
        "admin/logout/", sso_views.logout
    ),  # before the admin's own, which does not sign out at the provider
    path("admin/", admin.site.urls),
    path("oidc/authenticate/", sso_views.authenticate, name="oidc_authentication_init"),
    path("oidc/callback/", sso_views.callback, name="oidc_authentication_callback"),
    path("oidc/step-up/", sso_views.step_up, name="oidc_step_up"),
    path("oidc/logout/", sso_views.logout, name="oidc_logout"),
    path("oidc/backchannel-logout/", backchannel.backchannel_logout, name="oidc_backchannel_logout"),
    path("sign-in/", views.sign_in, name="sign_in"),
    path("signed-out/", views.signed_out, name="signed_out"),
    path("break-glass/", break_glass.enter, name="break_glass"),
    path("i18n/setlang/", login_not_required(set_language), name="set_language"),
    path("healthz", views.healthz, name="healthz"),
    path("readyz", views.readyz, name="readyz"),
    path("metrics", metrics.metrics, name="metrics"),
]

handler400 = views.bad_request
handler500 = views.server_error
