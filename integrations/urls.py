from django.urls import path
from rest_framework.routers import SimpleRouter

from integrations.views import (
    AuthorizeView,
    CallbackView,
    CompleteView,
    ConnectionViewSet,
    FinishView,
    RefreshView,
)

router = SimpleRouter(trailing_slash=False)
router.register("connections", ConnectionViewSet, basename="connection")

urlpatterns = [
    path("oauth/<str:provider>/authorize", AuthorizeView.as_view(), name="oauth-authorize"),
    path("oauth/<str:provider>/callback", CallbackView.as_view(), name="oauth-callback"),
    path("oauth/<str:provider>/finish", FinishView.as_view(), name="oauth-finish"),
    path("oauth/<str:provider>/complete", CompleteView.as_view(), name="oauth-complete"),
    path("oauth/<str:provider>/refresh", RefreshView.as_view(), name="oauth-refresh"),
    *router.urls,
]
