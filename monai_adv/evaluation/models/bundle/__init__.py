"""MONAI bundles as models of the evaluation."""
