"""Folders and models of transformers, on disk or on the Hugging Face hub: read and written."""
