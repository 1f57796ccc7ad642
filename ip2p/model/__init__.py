"""The editor: grown from a teacher, trained, sampled, evaluated, reported."""
