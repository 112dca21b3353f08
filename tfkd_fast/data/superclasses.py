"""The superclasses of CIFAR-100: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009."""

from collections.abc import Sequence

CIFAR100 = {
    "aquatic mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit and vegetables": ("apple", "mushroom", "orange", "pear", "sweet pepper"),
    "household electrical devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large man-made outdoor things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large natural outdoor scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large omnivores and herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium-sized mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple tree", "oak tree", "palm tree", "pine tree", "willow tree"),
    "vehicles 1": ("bicycle", "bus", "motorcycle", "pickup truck", "train"),
    "vehicles 2": ("lawn mower", "rocket", "streetcar", "tank", "tractor"),
}
"""Superclass name -> the names of its classes, as in the files of the data set, with spaces for underscores."""


def find_superclasses(classes: Sequence[str]) -> dict[str, tuple[int, ...]] | None:
    """Return the labels of each superclass of CIFAR-100, or None if the classes are not those of CIFAR-100.

    Args:
        classes: class names in label order; their words may be joined by spaces or underscores.
    """
    labels = {name.replace("_", " "): label for label, name in enumerate(classes)}
    if len(classes) != len(labels) or labels.keys() != {name for names in CIFAR100.values() for name in names}:
        return None
    return {superclass: tuple(sorted(labels[name] for name in names)) for superclass, names in CIFAR100.items()}
