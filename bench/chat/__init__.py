"""What the benches of the chat are made of: a model that answers at once, a device that does, and the stock stack."""
