"""What apps above billing are told."""

from django.dispatch import Signal

# In the transaction that changes a user's tier, with the account locked: `user_id`, `tier`.
tier_changed = Signal()
# A plan's limits were edited; after the commit.
plans_edited = Signal()
