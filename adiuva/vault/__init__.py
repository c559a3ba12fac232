"""Records, vectors and backups that clients store on the server, sealed with keys that it does not have."""
