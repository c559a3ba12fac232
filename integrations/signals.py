"""Signals about connections, for the apps above. Each is sent with `connection_id` and `user_id`.

A receiver runs after the change was committed, in a transaction of its own, in the thread that made the change. It
should query the database, and do everything else on commit.
"""

from django.dispatch import Signal

# A connection is lost: sent once, however many runs noticed it, and again by the sweep while a user who was not told
# has a device online.
needs_reauth = Signal()
# The user has connected a lost account again.
reconnected = Signal()
