"""Signals that billing sends to the apps above it."""

from django.dispatch import Signal

# Sent in the transaction that changes a user's tier, with the account locked: `user_id`, `tier`.
tier_changed = Signal()
# A plan's limits were edited; after the commit.
plans_edited = Signal()
