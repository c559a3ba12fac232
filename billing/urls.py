from django.urls import include, path

from billing.marketplace.developer_views import (
    DeveloperView,
    EarningsView,
    OnboardingView,
    PluginTransfersView,
    PluginTransferView,
    TransferPluginView,
)
from billing.marketplace.install_views import DownloadView, InstalledPluginsView, InstallView, UpdatesView
from billing.payments.views import CheckoutView, PortalView, ResumeView, WebhookView
from billing.teams.views import AcceptView, MembersView, MemberView, SeatsView, TeamView
from billing.views import MeView, PlansView, SubscriptionView

urlpatterns = [
    path("", include("billing.sso.urls")),
    path("", include("billing.marketplace.urls")),
    # Not with accounts, since it also has the limits of the plan.
    path("auth/me", MeView.as_view(), name="me"),
    path("billing/plans", PlansView.as_view(), name="billing-plans"),
    path("billing/subscription", SubscriptionView.as_view(), name="billing-subscription"),
    path("billing/subscription/resume", ResumeView.as_view(), name="billing-resume"),
    path("billing/checkout", CheckoutView.as_view(), name="billing-checkout"),
    path("billing/portal", PortalView.as_view(), name="billing-portal"),
    path("billing/webhook", WebhookView.as_view(), name="billing-webhook"),
    path("billing/team", TeamView.as_view(), name="team-rest"),
    path("billing/team/seats", SeatsView.as_view(), name="team-seats"),
    path("billing/team/members", MembersView.as_view(), name="team-members"),
    path("billing/team/members/<uuid:id>", MemberView.as_view(), name="team-member"),
    path("billing/team/accept", AcceptView.as_view(), name="team-accept"),
    path("developer", DeveloperView.as_view(), name="developer-rest"),
    path("developer/onboarding", OnboardingView.as_view(), name="developer-onboarding"),
    path("developer/earnings", EarningsView.as_view(), name="developer-earnings"),
    path("developer/transfers", PluginTransfersView.as_view(), name="plugin-transfers"),
    path("developer/transfers/<uuid:transfer_id>", PluginTransferView.as_view(), name="plugin-transfer"),
    path("plugins/installed", InstalledPluginsView.as_view(), name="plugins-installed"),
    path("plugins/updates", UpdatesView.as_view(), name="plugins-updates"),
    path("plugins/download", DownloadView.as_view(), name="plugin-download"),
    path("plugins/<uuid:plugin_id>/install", InstallView.as_view(), name="plugin-install"),
    path("plugins/<uuid:plugin_id>/transfer", TransferPluginView.as_view(), name="plugin-give"),
]
