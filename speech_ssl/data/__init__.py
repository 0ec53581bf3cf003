"""From manifests and files to padded batches."""
