"""What lies on disk: the format's version and the kinds of group, keyed ``(kind, version)``."""
