"""Heads: estimators on cached embeddings, and the protocol that trains, chooses and scores them.

``ridge``, ``baselines`` are estimators; ``registry`` finds one by name; ``panels``, ``features`` and ``splits`` say
what is predicted, from what and on which rows; ``metrics`` and ``evaluate`` say how well; ``fitted`` is what is kept.
"""
