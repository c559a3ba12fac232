"""The parts of the chat benches: a scripted model, a device, a profiled web process, and the stock stack."""
