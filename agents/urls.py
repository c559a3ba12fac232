from django.urls import path
from rest_framework.routers import SimpleRouter

from agents.plugin_views import OfferedAgentView, TryOutView
from agents.views import (
    CatalogView,
    CloudAgentViewSet,
    JourneyMessageView,
    KeepView,
    LocalAgentViewSet,
    RunViewSet,
    StartJourneyView,
    StartRunView,
)

router = SimpleRouter(trailing_slash=False)
router.register("agents/local", LocalAgentViewSet, basename="local-agent")
router.register("agents/cloud", CloudAgentViewSet, basename="cloud-agent")
router.register("agents/runs", RunViewSet, basename="run")

urlpatterns = [
    path("agents/catalog", CatalogView.as_view(), name="agents-catalog"),
    path("agents/journey/start", StartJourneyView.as_view(), name="agents-journey-start"),
    path("agents/journey/message", JourneyMessageView.as_view(), name="agents-journey-message"),
    path("agents/keep", KeepView.as_view(), name="agents-keep"),
    path("plugins/<uuid:plugin_id>/agent", OfferedAgentView.as_view(), name="plugin-agent"),
    path("plugins/<uuid:plugin_id>/agent/try_out", TryOutView.as_view(), name="plugin-agent-try-out"),
    *router.urls,
    path("agents/<uuid:agent_id>/run", StartRunView.as_view(), name="agent-run"),
]
