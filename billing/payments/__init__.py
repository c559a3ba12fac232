"""Payments through Stripe: customers, checkouts, subscriptions, and the events about them.

The truth is at Stripe and is fetched under a lease; an event only says that something changed. Each action at Stripe
has a row first (a `StripeJob`), and is sent with a key made of that row, so that no crash does it twice.
"""
