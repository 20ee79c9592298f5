"""``export nnUNet_extTrainer=$(python -m nnunet_trainers)``: for installs whose .pth Python does not read."""

from __future__ import annotations

from nnunet_trainers.discovery import discovery_folder

if __name__ == "__main__":
    print(discovery_folder())
