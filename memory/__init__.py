"""Memory: what Adiuva remembers of a user, in four sealed tiers that the user can read and correct."""
