"""No table: Django sends `post_migrate`, by which the roles are made, only to apps that have this module."""
