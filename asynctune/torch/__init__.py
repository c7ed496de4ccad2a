"""torch: what trials that use torch may want of asynctune. docs/torch.md is the guide."""

from asynctune.torch.dataset import shared as shared
from asynctune.torch.ranks import RankFailed as RankFailed
from asynctune.torch.ranks import distributed as distributed

__all__ = ["RankFailed", "distributed", "shared"]
