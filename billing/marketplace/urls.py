from django.urls import path

from billing.marketplace.views import (
    KeysView,
    OwnPluginsView,
    PluginsView,
    PluginView,
    RatingView,
    ReportView,
    RevocationsView,
    SubmitView,
    VersionsView,
    VersionView,
    WithdrawView,
    YankView,
)

_VERSION = "plugins/<uuid:plugin_id>/versions/<str:version>"

urlpatterns = [
    path("plugins", PluginsView.as_view(), name="plugins"),
    path("plugins/own", OwnPluginsView.as_view(), name="plugins-own"),
    path("plugins/revocations", RevocationsView.as_view(), name="plugins-revocations"),
    path("plugins/keys", KeysView.as_view(), name="plugins-keys"),
    path("plugins/<uuid:plugin_id>", PluginView.as_view(), name="plugin-rest"),
    path("plugins/<uuid:plugin_id>/rating", RatingView.as_view(), name="plugin-rating"),
    path("plugins/<uuid:plugin_id>/report", ReportView.as_view(), name="plugin-report"),
    path("plugins/<uuid:plugin_id>/versions", VersionsView.as_view(), name="plugin-versions"),
    path(_VERSION, VersionView.as_view(), name="plugin-version"),
    path(f"{_VERSION}/submit", SubmitView.as_view(), name="plugin-submit"),
    path(f"{_VERSION}/withdraw", WithdrawView.as_view(), name="plugin-withdraw"),
    path(f"{_VERSION}/yank", YankView.as_view(), name="plugin-yank"),
]
