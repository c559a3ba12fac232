"""Records, vectors and backups that clients store on the server, sealed with keys of their own. The server cannot read them."""
