"""The offline model: a set of rules behind the OpenAI HTTP API, for trying Adiuva without a model.

It is no language model. It finds what is plainly marked in a document (action items, checkboxes, TODOs, deadlines,
what a mail asks for) and understands a small set of requests in chat. `make run` starts it when no model is
configured; the rest of Adiuva speaks to it as to any other provider, over HTTP.
"""

CHAT_MODEL = "adiuva-offline"
EMBEDDING_MODEL = "adiuva-lexical"
