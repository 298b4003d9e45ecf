"""Mixed models: rows of one centre, patient or slide share an effect that is estimated, not memorised.

``random_intercept`` (one factor, closed form) and ``components`` (crossed and nested factors, slopes, spatial kernels)
are exact linear models that never form an n x n matrix; ``renn`` puts a network in place of their fixed effects.

What they stand on: ``terms`` (what someone asks for) builds ``uniform`` and ``surface`` (columns and covariances),
``blocks`` eliminates, ``system`` has the likelihood, ``newton`` steps where it is dear; ``fit_network`` trains against
``effects`` (one factor) or ``several``.
"""
