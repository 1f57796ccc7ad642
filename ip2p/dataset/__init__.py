"""Captions to a gated dataset: triplets, pairs, filter, validate."""
