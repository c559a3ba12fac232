from django.urls import path

from chat.consumer import ClientConsumer

websocket_urlpatterns = [path("api/v1/ws/device", ClientConsumer.as_asgi())]
