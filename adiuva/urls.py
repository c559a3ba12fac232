from django.contrib import admin
from django.contrib.auth.views import LogoutView, PasswordChangeView
from django.urls import URLPattern, URLResolver, include, path, re_path, reverse_lazy
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.permissions import AllowAny

from adiuva import health, views
from adiuva.accounts.forms import OwnPasswordForm
from adiuva.accounts.pages.sign_in import SignInPage
from billing.marketplace.own_pages import NewPluginPage, OwnPluginPage, OwnPluginsPage
from billing.marketplace.pages import CataloguePage, DeveloperPage, PluginPage, ReportPage
from billing.pages import CancelledPage, PricingPage, ReturnPage, SubscriptionPage
from billing.sso.pages import BeginPage, CallbackPage, LinkPage, TeamSsoPage
from billing.teams.pages import TeamPage
from billing.usage_page import UsagePage
from billing.usage_views import UsageView

# Without metadata, OPTIONS is refused, because the answer would have to be YAML or a page.
_open = {"authentication_classes": [], "permission_classes": [AllowAny], "metadata_class": None}

v1: list[URLPattern | URLResolver] = [
    path("", views.Root.as_view(), name="api-root"),
    path("health", health.Health.as_view(), name="health"),
    path("health/ready", health.Ready.as_view(), name="ready"),
    path("auth/", include("adiuva.accounts.urls")),
    path("", include("billing.urls")),
    path("", include("adiuva.devices.urls")),
    path("", include("memory.urls")),
    path("", include("agents.urls")),
    path("", include("integrations.urls")),
    path("", include("chat.urls")),
    path("", include("adiuva.vault.urls")),
    path("usage", UsageView.as_view(), name="usage"),
    path("", include("adiuva.export.urls")),
    path("schema/", SpectacularAPIView.as_view(**_open), name="schema"),
    path("docs/", SpectacularSwaggerSplitView.as_view(url_name="schema", **_open), name="docs"),
]

sign_in = [
    path("login/", SignInPage.as_view(landing="api-root"), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
]

urlpatterns: list[URLPattern | URLResolver] = [
    path("", views.index, name="index"),
    path("account/", include("adiuva.accounts.page_urls")),
    path("pricing", PricingPage.as_view(), name="pricing"),
    path("plugins", CataloguePage.as_view(), name="catalogue"),
    path("plugins/<slug:slug>", PluginPage.as_view(), name="plugin-page"),
    path("plugins/<slug:slug>/report", ReportPage.as_view(), name="report-plugin"),
    path("developers/<slug:handle>", DeveloperPage.as_view(), name="developer-page"),
    path("account/billing", SubscriptionPage.as_view(), name="billing"),
    path("account/plugins", OwnPluginsPage.as_view(), name="account-plugins"),
    path("account/plugins/new", NewPluginPage.as_view(), name="new-plugin"),
    path("account/plugins/own/<slug:slug>", OwnPluginPage.as_view(), name="own-plugin"),
    path("account/sso", BeginPage.as_view(), name="sso"),
    path("account/sso/callback", CallbackPage.as_view(), name="sso-callback"),
    path("account/sso/link", LinkPage.as_view(), name="sso-link"),
    path("account/team/sso", TeamSsoPage.as_view(), name="team-sso-page"),
    path("account/usage", UsagePage.as_view(), name="account-usage"),
    path("account/team", TeamPage.as_view(), name="team"),
    path("billing/return", ReturnPage.as_view(), name="billing-return"),
    path("billing/cancelled", CancelledPage.as_view(), name="billing-cancelled"),
    # In place of the admin's own, which knows no second factor.
    path("admin/login/", SignInPage.as_view(landing="admin:index")),
    path(
        "admin/password_change/",
        PasswordChangeView.as_view(form_class=OwnPasswordForm, success_url=reverse_lazy("admin:index")),
    ),
    path("admin/", include("adiuva.staff.urls")),
    path("admin/", admin.site.urls),
    path("api-auth/", include((sign_in, "rest_framework"))),  # DRF's name, for the links of its pages
    path("api/v1", views.Root.as_view()),
    path("api/v1/", include(v1)),
    re_path("^api/", views.no_endpoint),
]

handler400 = views.bad_request
handler403 = views.forbidden
handler404 = views.not_found
handler500 = views.server_error
