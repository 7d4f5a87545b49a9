"""The plan for a whole trunk: one policy over all its chains in the order of execution, or one for each chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from .density import Density
from .errors import PolicyError
from .policy import Policy, Role

Policies: TypeAlias = "Policy | Mapping[str, Policy] | Plan"


class Part(NamedTuple):
    """A policy, fitted, and the blocks of the trunk it is for: ``depth`` of them from ``first`` on."""

    policy: Policy
    first: int
    depth: int


@dataclass(frozen=True)
class Plan:
    """What is to become of every block of a trunk, bottom to top."""

    parts: tuple[Part, ...]
    text: str

    @classmethod
    def of(cls, policies: Policies, paths: Sequence[str]) -> Plan:
        """The plan for a trunk of blocks with these paths; a plan is taken as it is.

        A chain that a mapping does not name stays as it is.

        Raises:
            PolicyError: a policy does not fit, a chain does not exist or alternates with another one, or the chains ask
                for different pooled grids.
        """
        if isinstance(policies, Plan):
            return policies
        if isinstance(policies, Policy):
            return cls((Part(policies.fitted(len(paths)), 0, len(paths)),), str(policies))
        chains = chains_of(paths)
        if unknown := [name for name in policies if name not in chains]:
            raise PolicyError(f"policy names the chain {unknown[0]!r}; the trunk's chains are {_listed(chains)}.")
        parts = []
        for name, blocks in chains.items():
            first = paths.index(blocks[0])
            if list(paths[first : first + len(blocks)]) != blocks:
                raise PolicyError(
                    f"the chain {name!r} alternates with another one; give one Policy for all {len(paths)} blocks."
                )
            try:
                parts.append(Part(policies.get(name, Policy.dense()).fitted(len(blocks)), first, len(blocks)))
            except PolicyError as error:
                raise PolicyError(f"policy for the chain {name!r}: {error}") from error
        schedules = {str(part.policy.schedule): part for part in parts if part.policy.sdtm}
        if len(schedules) > 1:
            raise PolicyError(f"the chains have different densities, {' and '.join(schedules)}; the trunk has one pooled grid.")
        return cls(tuple(parts), "; ".join(f"{name}: {policy}" for name, policy in policies.items()))

    @property
    def rewrites(self) -> bool:
        """Whether any block is to be rewritten."""
        return any(part.policy.kind != "dense" for part in self.parts)

    @property
    def pools(self) -> bool:
        """Whether any block is to see pooled tokens."""
        return any(part.policy.sdtm for part in self.parts)

    @property
    def schedule(self) -> Density:
        """The density of all parts that pool; of the first one where none does."""
        return next((part.policy for part in self.parts if part.policy.sdtm), self.parts[0].policy).schedule

    def roles(self) -> list[Role]:
        """The role of each block, bottom to top."""
        return [role for part in self.parts for role in part.policy.roles(part.depth)]

    def __str__(self) -> str:
        return self.text


def chains_of(paths: Sequence[str]) -> dict[str, list[str]]:
    """Blocks by the list they stand in, in the order in which the lists begin."""
    chains: dict[str, list[str]] = {}
    for path in paths:
        chains.setdefault(path.rpartition(".")[0] or path, []).append(path)
    return chains


def wants_grid(policies: Policies) -> bool:
    """Whether the token grid has to be known."""
    if isinstance(policies, Plan):
        return policies.pools
    each = [policies] if isinstance(policies, Policy) else list(policies.values())
    return any(policy.kind == "auto" or policy.sdtm for policy in each)


def _listed(chains: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{name!r} ({len(blocks)} blocks)" for name, blocks in chains.items())
