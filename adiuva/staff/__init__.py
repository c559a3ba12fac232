"""The admin's own pages: is the server well, who uses it, what fails, and all about one account. Never content."""
