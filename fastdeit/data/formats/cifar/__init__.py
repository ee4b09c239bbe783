"""CIFAR-10 and CIFAR-100 in their published forms: binary or pickled, unpacked or in a .tar.gz."""
