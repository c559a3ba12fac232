"""What `bench.mailboxes` is made of: what is done to mailboxes, the servers and people, the comparison."""
