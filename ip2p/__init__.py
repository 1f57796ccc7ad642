"""ip2p: from nothing to a served, instruction-following image editor."""
