from django.urls import path
from rest_framework.routers import SimpleRouter

from integrations.views import Authorize, Callback, ConnectionViewSet, Refresh

router = SimpleRouter(trailing_slash=False)
router.register("connections", ConnectionViewSet, basename="connection")

urlpatterns = [
    path("oauth/<str:provider>/authorize", Authorize.as_view(), name="oauth-authorize"),
    path("oauth/<str:provider>/callback", Callback.as_view(), name="oauth-callback"),
    path("oauth/<str:provider>/refresh", Refresh.as_view(), name="oauth-refresh"),
    *router.urls,
]
