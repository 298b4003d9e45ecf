"""Public data by name: what there is, under which licence, and how it is fetched, resumed and checked.

Nothing is fetched but by `fetch`; the catalogue is the TOML files beside this module.
"""

from histostore.fetch.catalog import Dataset, Remote, datasets, find
from histostore.fetch.fetching import Fetched, Outcome, fetch, plan

__all__ = ["Dataset", "Fetched", "Outcome", "Remote", "datasets", "fetch", "find", "plan"]
