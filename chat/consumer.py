"""The WebSocket consumer at `/api/v1/ws/device`: one socket, with a device half and a chat half."""

from __future__ import annotations

from adiuva.core.channel_layer import Message
from adiuva.core.websocket import SocketConsumer
from adiuva.devices.codec import BadFrame, FrameTooLarge
from adiuva.devices.device_handler import DeviceHandler
from adiuva.devices.protocol import Close
from agents import schedules
from chat.chat_handler import ChatHandler


class ClientConsumer(SocketConsumer):
    """Passes frames and channel messages on to the half that they belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.device = DeviceHandler(self, schedules.device_connected)
        self.chat = ChatHandler(self, self.device)

    async def connect(self) -> None:
        await self.device.connect()

    def take_text(self, text: str) -> bool:
        return self.device.take_result(text)

    async def receive(self, text: str | None) -> None:
        try:
            frame = await self.device.receive(text)
            if frame is not None:
                await self.chat.receive(frame)
        except FrameTooLarge:
            await self.close(Close.TOO_LARGE)
        except BadFrame as bad:
            await self.device.refuse(bad)
            await self.chat.refuse(bad)

    def take_message(self, message: Message) -> bool:
        return self.device.take_message(message)

    async def channel_message(self, message: Message) -> None:
        if not await self.device.channel_message(message):
            await self.chat.channel_message(message)

    async def handler_failed(self, error: Exception) -> None:
        await self.device.handler_failed(error)

    async def disconnect(self) -> None:
        self.chat.disconnect()
        self.device.unregister()
        for message in self.unsubscribe():
            await self.channel_message(message)  # nothing can be sent any more; this tells the senders
        await self.device.disconnect()
