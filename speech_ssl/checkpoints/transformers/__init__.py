"""Folders and models of transformers, on the disk or on the Hugging Face hub: read and written."""
