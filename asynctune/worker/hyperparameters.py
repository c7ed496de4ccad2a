"""Hyperparameters: what an optimizer and its schedule take from the new configuration, where all else is the donor's.

What a constructor set is remembered with every checkpoint. What is the same in the donor's configuration and in the new one stays as the
donor had it; a float that training or a schedule has moved keeps its place, in proportion: restored * new / old; where that cannot be, and
for all else, the new value counts.
"""

from typing import Any

__all__ = ["adopt", "hyperparameters", "is_optimizer", "optimizer_of", "rate_ratio", "schedules", "transplant"]

#: The hyperparameters of one parameter group of an optimizer, or of one learning-rate scheduler, by name.
Group = dict[str, Any]

#: What learning-rate schedulers add to a group, or hold as a list with one element per group: all in proportion to the group's `lr`.
_GROUP_RATES = ("initial_lr", "max_lr", "min_lr")
_SCHEDULER_RATES = ("base_lrs", "_last_lr")


def is_optimizer(thing: Any) -> bool:
    return isinstance(getattr(thing, "param_groups", None), list)


def optimizer_of(thing: Any) -> Any:
    """The optimizer of a learning-rate scheduler; None: it is none."""
    optimizer = getattr(thing, "optimizer", None)
    return optimizer if is_optimizer(optimizer) else None


def schedules(scheduler: Any) -> list[Any]:
    """A learning-rate scheduler and those that it is made of."""
    return [scheduler, *(each for inner in getattr(scheduler, "_schedulers", ()) for each in schedules(inner))]


def hyperparameters(values: Group) -> Group:
    """What of a parameter group, or of a scheduler's attributes, is a hyperparameter: plain values, and tensors that are a number."""
    return {key: _number(value) for key, value in values.items() if _is_plain(_number(value))}


def transplant(group: Group, old: Group, new: Group) -> None:
    """Give a parameter group that was just restored the hyperparameters of the trial that takes it over.

    Args:
        group: the group as restored, with the values that the donor had reached; changed in place.
        old: what the donor's constructor had set.
        new: what this trial's constructor has set.
    """
    ratio = rate_ratio(old, new)
    # A schedule that begins at 0 hides the rate: `lr` was 0 when the constructors were through, `initial_lr` has it.
    hidden = old.get("lr") == 0 and "initial_lr" in old
    for key in group:
        if key in old and key in new and not (key == "lr" and hidden):
            _set(group, key, _moved(_number(group[key]), old[key], new[key]))
        elif key == "lr" or key in _GROUP_RATES:
            _set(group, key, _number(group[key]) * ratio)


def adopt(scheduler: Any, old: Group, new: Group, ratios: list[float]) -> None:
    """Give a learning-rate scheduler that was just restored what its constructor set in this trial.

    Args:
        scheduler: as restored; changed in place.
        old, new: its attributes as the donor's constructor had set them, and this trial's.
        ratios: by how much the rate of each parameter group is larger than the donor's.
    """
    state = vars(scheduler)
    for key in state:
        if key in _SCHEDULER_RATES:
            if isinstance(state[key], list) and len(state[key]) == len(ratios):
                state[key] = [rate * ratio for rate, ratio in zip(state[key], ratios, strict=True)]
        elif key in old and key in new:
            state[key] = _moved(state[key], old[key], new[key])


def rate_ratio(old: Group, new: Group) -> float:
    """By how much a group's learning rate, as its constructor set it, is larger than the donor's; 1 where that means nothing."""
    for key in ("initial_lr", "lr"):
        if _is_number(old.get(key)) and _is_number(new.get(key)) and old[key] != 0:
            return float(new[key] / old[key])
    return 1.0


def _moved(restored: Any, old: Any, new: Any) -> Any:
    if all(isinstance(value, tuple | list) for value in (restored, old, new)) and len(restored) == len(old) == len(new):
        return type(new)(r if o == n else n for r, o, n in zip(restored, old, new, strict=True))
    if old == new:
        return restored
    values = (restored, old, new)
    scales = all(map(_is_number, values)) and any(isinstance(value, float) for value in values)
    return restored * (new / old) if scales and old != 0 and restored != old else new


def _set(group: Group, key: str, value: Any) -> None:
    if _number(group[key]) is group[key]:
        group[key] = value
    else:  # in place, since a compiled step holds the tensor
        group[key].fill_(value)


def _number(value: Any) -> Any:
    """A tensor that is one number, as a learning rate may be, as that number; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "fill_") else value


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):  # milestones, phases
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)
