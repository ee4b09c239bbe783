"""The two augmentation backends: exact (PIL and timm, bit for bit) and native (DALI operators)."""
