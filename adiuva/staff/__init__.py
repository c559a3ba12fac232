"""Own pages of the admin: whether the server is well, who uses it, what fails, one account. Never content."""
