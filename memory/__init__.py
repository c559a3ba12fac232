"""What Adiuva remembers of a user, in four sealed tiers that the user can see and correct."""
