"""Ways to take orders, and the processes that do and are killed on the way, for `bench.orders`."""
