"""Prompt-to-Prompt: how a pair's edited image takes its layout from the source's attention. One file a method.

A method is a function `attend(q, k, v, plan, itself) -> out` over heads (`R, heads, L, D`), named by its file:
`self_attention` (the reference's), `cross_attention` (word swap and refinement), `both`, `none` (shared noise alone).
"""
