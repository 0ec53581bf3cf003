"""Pre-training methods beside each other at one budget: results, figures, a page."""
