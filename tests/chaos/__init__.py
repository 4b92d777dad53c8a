"""Faults on purpose: what is injected, and that nothing is lost or wrong after it."""
