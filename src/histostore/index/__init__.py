"""Indexes over embeddings: which rows are nearest to a query."""
