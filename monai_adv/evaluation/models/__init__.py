"""What can be measured: classifiers, segmentation networks, factories, MONAI bundles."""
