"""Offline model: a set of rules behind the OpenAI HTTP API, for trying Adiuva without a model.

It is not a language model. It finds only what a document marks explicitly (action items, checkboxes, TODOs,
deadlines, requests in a mail) and understands a small set of chat requests. `make run` starts it when no model is
configured. The rest of Adiuva calls it over HTTP, like any other provider.
"""

CHAT_MODEL = "adiuva-offline"
