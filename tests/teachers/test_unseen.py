"""Which images to fit no teacher was trained on, where the data set is some classes of another."""

import torch
from torch import nn

from tfkd_fast.data import DataSettings, open_dataset, split_holdout
from tfkd_fast.methods.base import TeacherFacts
from tfkd_fast.models import FeatureShapes
from tfkd_fast.teachers.teacher import Teacher, unseen_indices


def test_images_that_a_teacher_of_the_same_classes_held_out() -> None:
    dataset = open_dataset(DataSettings(classes=("3-5", "8")))
    facts = TeacherFacts("run", "vgg8", (0, 1, 2, 3), FeatureShapes((), 0))
    teacher = Teacher(facts, nn.Identity(), "", dataset.fingerprint, 0.3)
    train = dataset.read_train()
    fit, own_holdout = split_holdout(train, 0.1)
    _, unseen = split_holdout(train, 0.3)
    found = unseen_indices([teacher], dataset, 0.1)
    assert found is not None
    images = torch.cat([fit.subset(found).all_images(), own_holdout.all_images()]).flatten(1)
    assert torch.equal(images.unique(dim=0), unseen.all_images().flatten(1).unique(dim=0))
    assert len(found) + len(own_holdout) == len(unseen)
