"""Plugins: packages that a client installs. The server checks, signs and delivers them, and never runs one.

The way of a package: `package` opens it within bounds, `manifest` reads its claims, `checks` look for forbidden
content, staff review it, and `signing` signs what they saw. docs/plugins.md describes it for developers, and
docs/architecture/billing.md the money.
"""
