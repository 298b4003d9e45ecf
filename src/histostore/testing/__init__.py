"""Shipped with the package: synthetic slides with known truth, and contracts that a new part can be tested by."""
