"""Probes: representations from the frozen states of an encoder, and the classifiers fitted to them."""
