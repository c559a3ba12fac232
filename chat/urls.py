from django.urls import path
from rest_framework.routers import SimpleRouter

from chat.views import ChatView, ConversationViewSet, TurnUndoView

router = SimpleRouter(trailing_slash=False)
router.register("chat/conversations", ConversationViewSet, basename="conversation")

urlpatterns = [
    path("chat", ChatView.as_view(), name="chat"),
    path("chat/turns/<path:request_id>/undo", TurnUndoView.as_view(), name="turn-undo"),
    *router.urls,
]
