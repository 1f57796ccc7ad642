"""From evaluated editor to registered version: the gate is pure, the registry is MLflow."""
