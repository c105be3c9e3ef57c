"""What a labelled set is: dataset.yaml, the manifest, issues and what mask values mean."""
