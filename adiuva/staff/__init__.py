"""Pages of the admin's own: whether the server is well, who uses it, what fails, and all about one account. Never
content."""
