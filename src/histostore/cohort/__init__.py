"""Arithmetic over the rows of many slides, in bounded memory and in a fixed order: statistics, sums, factors."""
