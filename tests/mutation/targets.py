"""Which modules are mutated, and which tests are asked whether they notice: `targets.toml`."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

TARGETS = Path(__file__).with_name("targets.toml")


@dataclass(frozen=True)
class Target:
    """A module to mutate.

    Attributes:
        path: of its file, from the root of the checkout.
        module: what it is imported as; ``passes`` is a link in ``sparsify``.
        tests: arguments of pytest.
    """

    path: str
    module: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py")

    def digest(self, root: Path) -> str:
        """Changes when other tests are asked, or one of the files with these tests or beside them, which they may import."""
        named = {root / each.split("::")[0] for each in self.tests if not each.startswith("-")}
        beside = {file for each in named for file in each.parent.glob("*.py") if not file.name.startswith("test_")}
        files = sorted(named | beside)
        texts = [" ".join(self.tests).encode(), *(file.read_bytes() for file in files if file.is_file())]
        return hashlib.sha256(b"\n".join(texts)).hexdigest()[:16]


def read_targets(file: Path) -> list[Target]:
    """The targets of a table ``[modules]`` with lists of tests by path.

    Raises:
        ValueError: a module has no tests.
    """
    links = {"passes": "sparsify.passes", "targets": "sparsify.targets"}
    found = []
    for path, tests in tomllib.loads(file.read_text())["modules"].items():
        if not tests:
            raise ValueError(f"{file}: {path} has no tests: name those that cover it, as arguments of pytest")
        folder, *rest = path.removesuffix(".py").split("/")
        found.append(Target(path, ".".join([links.get(folder, folder), *rest]), tuple(tests)))
    return found


def read_imports(file: Path) -> list[str]:
    """What the first process imports before anything else, so that the others need not: modules from outside of the checkout."""
    return list(tomllib.loads(file.read_text()).get("imports", []))


def chosen(targets: list[Target], names: list[str] | None) -> list[Target]:
    """The targets with these names: paths with or without ``.py``, or their last part.

    Raises:
        ValueError: no target is called so.
    """
    if not names:
        return targets
    wanted = {name.removesuffix(".py").rstrip("/") for name in names}
    unknown = wanted - {each for target in targets for each in (target.name, target.name.split("/")[-1])}
    if unknown:
        raise ValueError(f"no module {', '.join(sorted(unknown))} to mutate; there are {', '.join(t.name for t in targets)}")
    return [target for target in targets if {target.name, target.name.split("/")[-1]} & wanted]
