"""``monai-adv demo``: a phantom, two trainings, an attack, one page. Runs as ``python -m nnunet_trainers.demo``."""
