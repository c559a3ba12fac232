"""A provider's mailbox as a stream of documents: what all providers share."""
