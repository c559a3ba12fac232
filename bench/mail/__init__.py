"""The parts of `bench.mailboxes`: fault scripts, sample mails, simulated users and servers, the comparison."""
