"""segmill: the retraining pipeline for semantic segmentation."""
