"""Plans and what they allow, what is used, and what is paid."""
