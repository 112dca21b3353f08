"""Which images to fit the teachers were not trained on."""

import torch
from torch import Tensor, nn

from tfkd_fast.data import DataSettings, ImageSet, open_dataset, split_holdout
from tfkd_fast.methods.base import TeacherFacts
from tfkd_fast.models import FeatureShapes
from tfkd_fast.teachers.teacher import Teacher, trained_on_holdout, unseen_images

SETTINGS = DataSettings(classes=("3-5", "8"))


def teacher(holdout: float, fold: int = 0, training_data: str | None = None) -> Teacher:
    facts = TeacherFacts("run", "vgg8", (0, 1, 2, 3), FeatureShapes((), 0))
    known = open_dataset(SETTINGS).fingerprint if training_data is None else training_data
    return Teacher(facts, nn.Identity(), "", known, holdout, fold)


def sorted_images(*sets: ImageSet) -> Tensor:
    return torch.cat([images.all_images() for images in sets]).flatten(1).unique(dim=0)


def test_images_that_a_teacher_of_the_same_classes_held_out() -> None:
    dataset = open_dataset(SETTINGS)
    train = dataset.read_train()
    fit, own_holdout = split_holdout(train, 0.1)
    _, held_out = split_holdout(train, 0.3)
    found = unseen_images([teacher(0.3)], dataset, SETTINGS)
    assert found is not None
    assert found.shape == (1, len(fit))
    unseen = fit.subset(found[0].nonzero().squeeze(1))
    assert torch.equal(sorted_images(unseen, own_holdout), sorted_images(held_out))
    assert len(unseen) + len(own_holdout) == len(held_out)


def test_teachers_of_all_folds_have_held_out_every_image_once() -> None:
    dataset = open_dataset(SETTINGS)
    folds = [teacher(0.25, fold) for fold in range(4)]
    found = unseen_images(folds, dataset, SETTINGS)
    assert found is not None
    assert found.sum(0).tolist() == [1] * found.shape[1]
    for number in (1, 2, 3):  # none of their images is among those that the student holds out
        held_out = split_holdout(dataset.read_train(), 0.25, number)[1]
        assert int(found[number].sum()) == len(held_out)
    everything = unseen_images(folds, dataset, SETTINGS.model_copy(update={"holdout": 0.0}))
    assert everything is not None
    assert everything.sum() == len(dataset.read_train())


def test_it_is_not_known_what_teachers_of_other_images_or_of_all_images_have_not_seen() -> None:
    dataset = open_dataset(SETTINGS)
    for other in (teacher(0.0), teacher(0.3, training_data="another set"), teacher(0.1)):
        assert unseen_images([teacher(0.3), other], dataset, SETTINGS) is None
    assert unseen_images([], dataset, SETTINGS) is None


def test_a_teacher_has_seen_what_a_student_holds_out_unless_it_held_that_out_too() -> None:
    dataset = open_dataset(SETTINGS)

    def saw(*teachers: Teacher, holdout: float = 0.1, fold: int = 0) -> bool | None:
        data = SETTINGS.model_copy(update={"holdout": holdout, "fold": fold})
        return trained_on_holdout(teachers, dataset, data)

    assert [saw(teacher(share)) for share in (0.0, 0.05, 0.1, 0.3)] == [True, True, False, False]
    assert [saw(teacher(0.25, fold)) for fold in range(4)] == [False, True, True, True]
    assert saw(teacher(0.25, 1), holdout=0.25, fold=1) is False
    assert saw(teacher(0.3), teacher(0.0)) is True
    assert saw(teacher(0.0), holdout=0.0) is False
    assert saw(teacher(0.3, training_data="another set")) is None
