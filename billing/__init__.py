"""Plans and their limits, the use of models and storage, and payments."""
