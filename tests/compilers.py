"""Backends of `torch.compile` as they should not be."""


def halved(graph, inputs):
    """Computes what it should, with half of its gradients."""
    return lambda *given: [y / 2 + y.detach() / 2 for y in graph(*given)]
