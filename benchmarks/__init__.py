"""One file per claim: measured against a bare limit and against peers in the same run. ``make bench`` runs them all."""
