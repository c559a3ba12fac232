from django.urls import path
from rest_framework.routers import SimpleRouter

from agents.views import CatalogView, LocalAgentViewSet, RunViewSet, StartRunView

router = SimpleRouter(trailing_slash=False)
router.register("agents/local", LocalAgentViewSet, basename="local-agent")
router.register("agents/runs", RunViewSet, basename="run")

urlpatterns = [
    path("agents/catalog", CatalogView.as_view(), name="agents-catalog"),
    *router.urls,
    path("agents/<uuid:agent_id>/run", StartRunView.as_view(), name="agent-run"),
]
