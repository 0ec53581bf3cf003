"""The pages at `/` and `/docs`; what they are made of is in static/."""
