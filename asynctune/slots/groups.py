"""Groups: GPUs that a trial takes together, near each other."""

from collections.abc import Mapping, Sequence

from asynctune.slots.gpu import Gpu

__all__ = ["groups"]


def groups(gpus: Sequence[Gpu], size: int, distances: Mapping[tuple[str, str], int]) -> list[list[Gpu]]:
    """As many groups of `size` as there can be, each GPU in one at most.

    Greedy: the tightest group of those that are left goes first. Among equals, and without any distances, neighbours
    in the order given are taken. Groups, and GPUs in them, are in the order given.
    """
    left = list(range(len(gpus)))

    def distance(one: int, others: Sequence[int]) -> int:
        return sum(distances.get((gpus[one].uuid, gpus[other].uuid), 0) for other in others)

    def grown(seed: int) -> tuple[int, list[int]]:
        """The group that a GPU gathers around itself, and how wide it is."""
        group, width = [seed], 0
        while len(group) < size:
            # Those behind the seed before those ahead of it, so that equals make neighbours.
            rest = [*(place for place in left if place > seed), *(place for place in left if place < seed)]
            nearest = min((place for place in rest if place not in group), key=lambda place: distance(place, group))
            width += distance(nearest, group)
            group.append(nearest)
        return width, group

    found = []
    while len(left) >= size:
        _, group = min(map(grown, left), key=lambda candidate: candidate[0])
        left = [place for place in left if place not in group]
        found.append(sorted(group))
    return [[gpus[place] for place in group] for group in sorted(found)]
