"""What `ip2p VERB` does: options and the call, by kind. Heavy imports wait inside the verbs."""
