"""The version of the package; the format has a version of its own (``schema``)."""

__version__ = "0.1.0"
