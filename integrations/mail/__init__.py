"""Reading mailboxes as streams of documents: the parts that all providers share."""
