"""Log-mel features and their augmentation."""
