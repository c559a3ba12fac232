"""The platform every room of Adiuva stands on."""

__version__ = "0.1.0"
