"""How many labels a model needs: a study's trials, its figures and its report."""
