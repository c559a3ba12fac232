"""The vault over REST. Every query starts from the request's user."""
