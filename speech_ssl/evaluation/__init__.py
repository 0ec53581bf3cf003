"""Evaluation of learned representations: metrics, probes, label efficiency, figures."""
