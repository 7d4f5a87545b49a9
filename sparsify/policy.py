"""Policy: which block does what (the three segments of SparseDiT, paper section 3) and at which density."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, overload

from . import paper
from .density import Density
from .errors import PolicyError
from .json_text import read_json

if TYPE_CHECKING:
    from torch import nn

RoleName = Literal["pooling", "generate", "sparse", "recover", "dense"]

FORMAT_VERSION = 1
MAX_DEPTH = 10_000  # of a trunk that a policy is fitted to
DEFAULT_RATES = (0.61, 0.86)  # the paper's range that is used at 256 and at 512


class Role(NamedTuple):
    """What one block becomes, which sparse-dense module it belongs to (or None), and why."""

    name: RoleName
    module: int | None
    why: str


@dataclass(frozen=True)
class SDTM:
    """One sparse-dense token module: how many blocks generate, see sparse tokens, recover, and see dense tokens.

    ``generate`` blocks attend from sparse queries to the dense tokens kept from before the pooling, ``sparse`` blocks
    see sparse tokens alone, ``recover`` blocks attend from dense queries to sparse keys, ``dense`` blocks are ordinary.
    ``SDTM(1, 3, 1, 1) * 4`` is a tuple of four modules. Of a video's tokens space alone is pooled, frame by frame, unless
    ``time`` is set.
    """

    generate: int = 1
    sparse: int = 3
    recover: int = 1
    dense: int = 1
    time: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.time, bool):
            raise PolicyError(f"SDTM.time is {self.time!r}; it must be True (pool the frames of a video too) or False.")
        for name, least in (("generate", 1), ("sparse", 0), ("recover", 1), ("dense", 0)):
            _check_count(f"SDTM.{name}", getattr(self, name), least)

    @property
    def depth(self) -> int:
        """Blocks in this module."""
        return self.generate + self.sparse + self.recover + self.dense

    def __mul__(self, times: int) -> tuple[SDTM, ...]:
        _check_count("the number of modules in SDTM(...) * n", times, 1)
        return (self,) * times

    __rmul__ = __mul__


class _DenseField:
    """``policy.dense`` is a number of blocks; ``Policy.dense()`` makes the policy that rewrites nothing."""

    @overload
    def __get__(self, policy: None, owner: type[Policy]) -> Callable[[], Policy]: ...
    @overload
    def __get__(self, policy: Policy, owner: type[Policy]) -> int: ...
    def __get__(self, policy: Policy | None, owner: type[Policy]) -> int | Callable[[], Policy]:
        if policy is None:
            return _dense_policy
        value: int = policy.__dict__["dense"]
        return value

    def __set__(self, policy: Policy, value: int) -> None:
        # A dataclass takes what the class attribute yields for the default, and that is the constructor.
        is_default = cast(object, value) is _dense_policy
        policy.__dict__["dense"] = 0 if is_default else value


def _dense_policy() -> Policy:
    """Rewrite nothing: the result computes exactly what the model computes."""
    return Policy(kind="dense")


@dataclass(frozen=True)
class Policy:
    """The segments of a sparse model, bottom to top, and its density over time.

    Attributes:
        poolingformer: blocks at the bottom whose attention becomes a mean of the values.
        sdtm: the sparse-dense token modules above them.
        dense: unchanged blocks on top.
        density: pooled grid as a function of the timestep.
        kind: ``"explicit"``, or ``"auto"`` (fitted to the trunk once it is found), or ``"dense"`` (rewrite nothing).
    """

    poolingformer: int = 0
    sdtm: tuple[SDTM, ...] = ()
    dense: _DenseField = _DenseField()  # a descriptor, see its docstring
    density: Density = field(default_factory=lambda: Density.paper(*DEFAULT_RATES))
    kind: Literal["explicit", "auto", "dense"] = "explicit"

    def __post_init__(self) -> None:
        if self.kind not in ("explicit", "auto", "dense"):
            raise PolicyError(f"Policy.kind is {self.kind!r}; allowed: 'explicit', 'auto', 'dense'.")
        _check_count("Policy.poolingformer", self.poolingformer, 0)
        _check_count("Policy.dense", self.dense, 0)
        modules = (self.sdtm,) if isinstance(self.sdtm, SDTM) else self.sdtm
        if not isinstance(modules, (tuple, list)) or not all(isinstance(m, SDTM) for m in modules):
            raise PolicyError(f"Policy.sdtm is {self.sdtm!r}; it must be a tuple of SDTM, such as SDTM(1, 3, 1, 1) * 4.")
        object.__setattr__(self, "sdtm", tuple(modules))
        if not isinstance(self.density, Density):
            raise PolicyError(f"Policy.density is {self.density!r}; use Density.paper(...) or Density.constant(...).")
        if len({module.time for module in modules}) > 1:
            raise PolicyError("Policy.sdtm: all modules share one pooled grid, so SDTM.time must be the same in all of them.")
        if self.kind != "explicit" and self.depth:
            raise PolicyError(f"Policy(kind={self.kind!r}) takes no segments; it is made for any depth.")
        if self.kind == "explicit" and not (self.poolingformer or self.sdtm):
            raise PolicyError("Policy has neither poolingformer blocks nor an SDTM; to rewrite nothing use Policy.dense().")

    @property
    def depth(self) -> int:
        """Blocks that the segments cover; 0 for ``auto()`` and ``dense()``, which take any depth."""
        return self.poolingformer + sum(m.depth for m in self.sdtm) + self.dense

    @classmethod
    def paper(cls, model: str, resolution: int, *, rates: tuple[float, float] | None = None) -> Policy:
        """A row of the paper's table of configurations, such as ``Policy.paper("DiT-XL/2", 512)``.

        ``rates`` chooses between rows that differ in their pruning rates only; without it the paper's main row is taken.
        """
        row = paper.find(model, resolution, rates)
        modules = tuple(SDTM(*counts) for counts in row.sdtm)
        density = Density("paper", row.finest, row.coarsest)
        return cls(row.poolingformer, modules, row.dense, density)

    @classmethod
    def fit(cls, depth: int, density: Density | None = None) -> Policy:
        """The paper's proportions at any depth from 4 up: at 28 blocks exactly its 2, 4 x (1, 3, 1, 1), 2.

        One block in fourteen becomes poolingformer, as many stay dense on top, and the rest is shared out over
        modules of about six blocks.
        """
        _check_count("depth", depth, 4)
        if depth > MAX_DEPTH:
            raise PolicyError(f"depth is more than {MAX_DEPTH}; give the number of blocks in the model's trunk.")
        bottom = max(1, round(depth / 14))
        top = bottom if depth > 4 else 0  # four blocks are too few for a dense top as well
        count = max(1, round(depth / 7))
        length, longer = divmod(depth - bottom - top, count)
        modules = tuple(_module_of(length + (i < longer)) for i in range(count))
        policy = cls(bottom, modules, top)
        return policy if density is None else replace(policy, density=density)

    @classmethod
    def auto(cls, density: Density | None = None) -> Policy:
        """:meth:`fit`, applied to the trunk once it has been found."""
        return cls(kind="auto") if density is None else cls(kind="auto", density=density)

    @classmethod
    def search(cls, model: nn.Module, batches: Iterable[Any], budget: float = 0.45, **options: Any) -> Policy:
        """The best measured policy within ``budget``, the share of the dense GFLOPs to spend; never worse than :meth:`fit`
        on these batches.

        The short form of :func:`sparsify.search.search`, which takes the same options and returns all that was measured.
        """
        from .search import search  # what measures loads what traces

        return search(model, batches, budget, **options).policy

    def fitted(self, depth: int) -> Policy:
        """This policy for a trunk of ``depth`` blocks.

        Raises:
            PolicyError: the segments cover another number of blocks.
        """
        if self.kind == "dense":
            return self
        if self.kind == "auto":
            return Policy.fit(depth, self.density)
        if self.depth != depth:
            raise PolicyError(
                f"Policy covers {self.depth} blocks (poolingformer {self.poolingformer} + sdtm "
                f"{sum(m.depth for m in self.sdtm)} + dense {self.dense}) but the trunk has {depth}. Change the segments, "
                f"or use Policy.fit({depth}) or Policy.auto()."
            )
        return self

    def roles(self, depth: int) -> list[Role]:
        """The role of each of ``depth`` blocks, bottom to top."""
        if self.kind == "dense":
            return [Role("dense", None, "dense policy: nothing is rewritten")] * depth
        policy = self.fitted(depth)
        roles = [Role("pooling", None, "poolingformer: attention is the mean of the values")] * policy.poolingformer
        for index, module in enumerate(policy.sdtm):
            roles += [Role("generate", index, "sparse queries attend to the dense tokens")] * module.generate
            roles += [Role("sparse", index, "sees the sparse tokens alone")] * module.sparse
            roles += [Role("recover", index, "restored dense queries attend to the sparse tokens")] * module.recover
            roles += [Role("dense", index, "ordinary block on the restored tokens")] * module.dense
        return roles + [Role("dense", None, "dense top")] * policy.dense

    @property
    def schedule(self) -> Density:
        """The density, with what the modules say of the time axis."""
        return replace(self.density, pools_time=True) if any(module.time for module in self.sdtm) else self.density

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads back to an equal policy."""
        return json.dumps(
            {
                "version": FORMAT_VERSION,
                "kind": self.kind,
                "poolingformer": self.poolingformer,
                "sdtm": [[m.generate, m.sparse, m.recover, m.dense, *([True] if m.time else [])] for m in self.sdtm],
                "dense": self.dense,
                "density": self.density.to_dict(),
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Policy:
        """Read what :meth:`to_json` wrote.

        Raises:
            PolicyError: not JSON, a newer format version, or a field that is missing, unknown or not valid.
        """
        try:
            data = read_json(text)
        except ValueError as error:
            raise PolicyError(f"the policy is not JSON: {error}") from error
        if not isinstance(data, Mapping):
            raise PolicyError(f"the policy must be a JSON object, not {type(data).__name__}.")
        fields: dict[str, Any] = dict(data)
        version = fields.pop("version", None)
        if type(version) is not int or version != FORMAT_VERSION:  # True and 1.0 equal 1
            raise PolicyError(f"policy version is {version!r}; this sparsify reads version {FORMAT_VERSION}. Upgrade sparsify.")
        known = {"kind", "poolingformer", "sdtm", "dense", "density"}
        if set(fields) != known:
            raise PolicyError(
                f"policy fields: missing {sorted(known - set(fields))}, unknown {sorted(set(fields) - known)}; "
                f"it takes {sorted(known)}."
            )
        modules = fields["sdtm"]
        if not isinstance(modules, list) or not all(isinstance(m, list) and len(m) in (4, 5) for m in modules):
            raise PolicyError(f"policy field sdtm is {modules!r}; it is a list of [generate, sparse, recover, dense(, time)].")
        fields["sdtm"] = tuple(SDTM(*m) for m in modules)
        fields["density"] = Density.from_dict(fields["density"])
        return cls(**fields)

    def __str__(self) -> str:
        if self.kind == "dense":
            return "dense policy (rewrites nothing)"
        if self.kind == "auto":
            return f"auto policy, density {self.density}"
        modules = ", ".join(
            f"({m.generate}, {m.sparse}, {m.recover}, {m.dense}{', time' if m.time else ''})" for m in self.sdtm
        )
        return f"poolingformer {self.poolingformer}, sdtm [{modules}], dense {self.dense}, density {self.density}"


def _module_of(length: int) -> SDTM:
    """A module of ``length`` blocks; the sparse share is what the paper's (1, 3, 1, 1) leaves after the other three."""
    return SDTM(1, length - 3, 1, 1) if length > 3 else SDTM(1, length - 2, 1, 0)


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PolicyError(f"{name} is {value!r}; it must be an integer of at least {least}.")
