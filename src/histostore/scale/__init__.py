"""The stages on dask.distributed: tasks own whole shards and hand back receipts; the client alone seals and commits.

Nothing else in the package imports ``distributed``, and here only `cluster` and `runner` do.
"""
