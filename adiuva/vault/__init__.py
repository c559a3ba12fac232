"""What clients keep on the server sealed with keys of their own: records, and backups. The server cannot read it."""
