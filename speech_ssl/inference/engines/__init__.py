"""Engines that run an encoder: one file per engine, none of which imports another."""
