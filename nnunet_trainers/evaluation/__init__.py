"""nnU-Net as a host of ``monai-adv evaluate``."""
