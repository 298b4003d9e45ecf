"""The store: write-once groups, made visible by one manifest commit. The law is ``stores/SPEC.md``."""
