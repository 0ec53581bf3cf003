"""Files that torch saved, read as plain data: nothing that they name is run."""
