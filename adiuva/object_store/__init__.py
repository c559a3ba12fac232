"""Large objects outside the database: written once under random names, in files or in S3; deleted through a queue."""
