"""Platform of Adiuva, on which all its apps stand."""

__version__ = "0.1.0"
