"""Plugins: packages that a client installs. The server checks, signs and hands them out, and never runs one.

The way of a package: `package` opens it within bounds, `manifest` says what it claims to be, `checks` look for what
must not be in it, staff review it, `signing` signs what they saw. docs/plugins.md has it as developers see it,
and docs/architecture/billing.md what becomes of the money.
"""
