"""Mailboxes and channels that a user connects: sign-in, tokens, and reading them."""
