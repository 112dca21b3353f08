"""Put together a method for a loop of one's own, or refuse one that needs what such a loop does not hand over."""

from typing import Any, NoReturn

from tfkd_fast.errors import UserError, nearest, shorten
from tfkd_fast.methods import Context, Method, find_method
from tfkd_fast.methods.base import Interval, Material, Needs, Plan, TeacherTable, whole_network
from tfkd_fast.models import FeatureShapes
from tfkd_fast.own_loop.batch import or_without_memory
from tfkd_fast.runs.precedence import merge
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.settings import Settings

CRITERIA = ("holdout-nll", "holdout-top1")
"""The criteria that rank candidates unless others are named: those that need no average of weights."""

NETWORK = "the network"
"""The name of a network that has none, student and teacher alike."""

NO_FEATURES = FeatureShapes((), 0)
"""The shapes of the features of a network whose features are not handed over."""


def read_settings(method: str, tables: dict[str, Any]) -> Settings:
    """The settings of a method, from tables as a recipe has them.

    Raises:
        UserError: the method or a key is unknown, or nothing reads the key in a loop of one's own.
    """
    entry = find_method(method)
    for table in tables:
        if table not in entry.settings.model_fields:
            raise UserError(
                f"method {method!r} reads no {shorten(table)}: {nearest(table, entry.settings.model_fields)}"
            )
    options = make_recipe({"method": method}, tables).options
    if "interval" in entry.needs(options).averages and "criteria" not in tables.get("selection", {}):
        options = make_recipe({"method": method}, merge(tables, {"selection": {"criteria": list(CRITERIA)}})).options
    teachers = getattr(options, "teachers", None)
    if isinstance(teachers, TeacherTable) and (teachers.runs or teachers.cache or teachers.views):
        raise UserError(
            "teachers.runs, teachers.cache and teachers.views are read by tfkd-fast train: in a loop of one's own, "
            "compute the logits of the teachers and hand them to each call"
        )
    return options


def build_method(name: str, settings: Settings, context: Context) -> Method:
    """The method of these settings, before its first interval.

    Raises:
        UserError: the method needs what a loop of one's own does not hand over, or something that was not given.
    """
    entry = find_method(name)
    needs = entry.needs(settings)
    _refuse_needs(name, needs, list(entry.build.intervals_for(settings, context.epochs)))
    _refuse_gaps(name, needs, context)
    method = entry.build(settings, context)

    def refuse(*_: object) -> NoReturn:
        raise _refusal(name, "it prepares itself with training images")

    list(method.prepare(Material(refuse, refuse, refuse)))
    return method


def check_plan(name: str, plan: Plan) -> None:
    """Raise UserError for a plan that a loop of one's own cannot follow."""
    whole = plan.network is whole_network and plan.labels is None and plan.teachers is None
    if not whole or plan.schedule is not None or plan.turns is not None:
        raise _refusal(name, "network, images and learning rate of its stages are its own")


def _refuse_needs(name: str, needs: Needs, intervals: list[Interval]) -> None:
    """Raise UserError for needs that no loop of one's own meets."""
    if needs.look_ahead:
        raise _refusal(name, "it tries out steps before they are taken")
    if needs.material:
        raise _refusal(name, "it prepares itself with training images")
    if needs.companions in ("weak", "strong") and needs.teachers.fewest:
        raise _refusal(name, "its teachers look at a second view of every image")
    if needs.influence:
        raise _refusal(
            name, "its controller follows the gradient of the held-out loss", "choose another controller.name"
        )
    if needs.cooldown_epochs:
        raise _refusal(name, "it judges copies that were trained to an end", "set controller.cooldown_epochs to 0")
    if needs.averaged_candidates:
        raise _refusal(name, "it judges averages of candidates, which are yours", "set selection.average to none")
    if "interval" in needs.averages and any(each.candidates > 1 and each.epochs > 1 for each in intervals):
        raise _refusal(
            name,
            "a criterion of its selection reads weights averaged over an interval",
            "leave averaged-top1 out of selection.criteria, set selection.interval to 1",
        )


def _refusal(name: str, reason: str, remedy: str = "") -> UserError:
    """The error of a method that a loop of one's own does not serve; `remedy` is a clause."""
    return UserError(
        f"method {name!r} does not work in a loop of one's own, because {reason}: "
        f"{remedy and remedy + ', or '}train with tfkd-fast train --method {name}"
    )


def _refuse_gaps(name: str, needs: Needs, context: Context) -> None:
    """Raise UserError for a fact that the method needs and that was not given."""
    if needs.indices and not context.num_images:
        remedy = f"give num_images, their number{or_without_memory(needs)}"
        raise UserError(f"method {name!r} remembers something of each training image: {remedy}")
    if needs.companions == "previous" and not context.batch_size:
        raise UserError(f"method {name!r} remembers the last batch: give batch_size, the size of the largest one")
    if needs.features and context.shapes == NO_FEATURES:
        raise UserError(f"method {name!r} reads features of the network: give feature_shapes, their shapes")
    count = len(context.teachers)
    if not needs.teachers.includes(count):
        raise UserError(f"method {name!r} learns from {needs.teachers.describe()}: num_teachers cannot be {count}")
