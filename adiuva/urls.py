from django.contrib import admin
from django.contrib.auth.views import LogoutView, PasswordChangeView
from django.urls import URLPattern, URLResolver, include, path, re_path, reverse_lazy
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.permissions import AllowAny

from adiuva import health, views
from adiuva.accounts.forms import OwnPasswordForm
from adiuva.accounts.pages.sign_in import SignInPage

# Without metadata, OPTIONS is refused: the answer would have to be YAML or a page.
_open = {"authentication_classes": [], "permission_classes": [AllowAny], "metadata_class": None}

v1: list[URLPattern | URLResolver] = [
    path("", views.Root.as_view(), name="api-root"),
    path("health", health.Health.as_view(), name="health"),
    path("health/ready", health.Ready.as_view(), name="ready"),
    path("auth/", include("adiuva.accounts.urls")),
    path("", include("adiuva.devices.urls")),
    path("", include("memory.urls")),
    path("", include("agents.urls")),
    path("", include("integrations.urls")),
    path("", include("chat.urls")),
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
    # Instead of the admin's own, which knows no second factor.
    path("admin/login/", SignInPage.as_view(landing="admin:index")),
    path(
        "admin/password_change/",
        PasswordChangeView.as_view(form_class=OwnPasswordForm, success_url=reverse_lazy("admin:index")),
    ),
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
