"""How many labels a model needs: a study's trials, figures and report."""
