"""Faults injected into runs of `effpt pretrain`, and what came of each."""
