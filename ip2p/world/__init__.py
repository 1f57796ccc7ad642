"""The illustrated world: the embedded default in which the truth of every edit is known."""
