"""Rows of slides as values that can be sent to another process, and read there."""
