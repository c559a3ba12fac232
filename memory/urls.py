from django.urls import path
from rest_framework.routers import SimpleRouter

from memory.models import Tier
from memory.views import (
    EmbedView,
    EntryViewSet,
    ForgetView,
    PolicyView,
    ReceiptsView,
    SearchView,
    TakeBackView,
)

router = SimpleRouter(trailing_slash=False)
router.register(f"memory/(?P<tier>{'|'.join(Tier.values)})", EntryViewSet, basename="memory")

urlpatterns = [
    *router.urls,
    path("memory/search", SearchView.as_view(), name="memory-search"),
    path("memory/forget", ForgetView.as_view(), name="memory-forget"),
    path("memory/take-back", TakeBackView.as_view(), name="memory-take-back"),
    path("memory/policy", PolicyView.as_view(), name="memory-policy"),
    path("memory/receipts", ReceiptsView.as_view(), name="memory-receipts"),
    # Not among the other endpoints under /storage, since these must not depend on models.
    path("storage/vectors/embed", EmbedView.as_view(), name="storage-vectors-embed"),
]
