"""Connected mailboxes and channels: consent, tokens, and reading messages."""
