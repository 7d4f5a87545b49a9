"""Models of several kinds train: their inputs are told apart, whatever their names, nesting and way of capture."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sparsify import InputError, Policy, sparsify
from sparsify.errors import TrainingError
from sparsify.training import Images
from sparsify.training.calling import Roles, example_for, guessed, prediction
from sparsify.training.labels import drops_labels, known_labels
from sparsify.training.parallel import own_units, shard

from .training_helpers import CLASSES, POLICY, Tiny, assert_same, curve, images, run, sparse_tiny, tiny, tiny_of_diffusers

CPU = torch.device("cpu")


class Looking(Tiny):
    """Looks at values, so that no graph of the whole model holds, and its blocks run in place."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if float(x.mean()) > 100:
            x = x * 2
        return super().forward(x, t, y)


def looking() -> Looking:
    model = Looking()
    model.load_state_dict(tiny().state_dict())
    return model


def test_models_that_run_in_place_train_like_others(tmp_path: Path) -> None:
    sparse = sparsify(looking().train(), POLICY, (torch.zeros(4, 1, 8, 8), torch.full((4,), 500), torch.zeros(4).long()))
    assert sparse.program.in_place
    run(tmp_path / "in place", 4, None, sparse, gradient_checkpointing=True)
    run(tmp_path / "graph", 4)
    torch.testing.assert_close(
        torch.tensor(curve(tmp_path / "in place")), torch.tensor(curve(tmp_path / "graph")), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(TrainingError, match="parallel is 'fsdp2', but this model runs in place"):
        shard(sparse, sparse.program, CPU)


def test_models_of_diffusers_train_and_their_own_random_numbers_repeat(tmp_path: Path) -> None:
    """They return objects, take names of their own, and drop labels in training mode."""
    model = tiny_of_diffusers(drops_labels=True).train()
    sparse = sparsify(model, POLICY, example_for(model, images(), None, 4, CPU))
    for name, steps in (("once", (2,)), ("twice", (1, 2))):
        for until in steps:
            run(tmp_path / name, until, None, copy.deepcopy(sparse), label_dropout=0.0, save_every=1)
    assert_same(tmp_path / "once", tmp_path / "twice")


def test_labels_that_a_model_drops_by_itself_are_not_distilled(tmp_path: Path) -> None:
    """The teacher would answer for the label, and teach what is asked without one to draw it."""
    model = tiny_of_diffusers(drops_labels=True)
    options = {"distill_output": 1.0, "learning_rate": 1e-12}
    with pytest.raises(InputError, match=r"the model drops labels by itself .* class_embedder.dropout_prob = 0\)"):
        run(tmp_path, 1, Policy.dense(), model, **options)
    for block in model.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0
    result = run(tmp_path, 3, Policy.dense(), model, label_dropout=0.5, null_label=CLASSES, **options)
    assert [record["distill_output"] for record in result.history] == [0, 0, 0], "both models see the same labels"


DROPS = {
    "none": lambda m, y, table: m.y_embedder(y),
    "features": lambda m, y, table: F.dropout(m.y_embedder(y), 0.1),
    "noise on the table": lambda m, y, table: F.embedding(y, table + torch.randn_like(table)),
    "index": lambda m, y, table: m.y_embedder(torch.where(torch.rand(len(y)) < 0.1, CLASSES, y)),
    "row of the table": lambda m, y, table: table[torch.where(torch.bernoulli(torch.full((len(y),), 0.1)).bool(), CLASSES, y)],
    "one-hot": lambda m, y, table: F.one_hot(y.masked_fill(torch.rand(len(y)) < 0.1, CLASSES), CLASSES + 1).float() @ table,
    "embedding": lambda m, y, table: torch.where(torch.rand(len(y), 1) < 0.1, table[CLASSES], m.y_embedder(y)),
    "by a mask": lambda m, y, table: (m.y_embedder(y)[:, None] * (torch.rand(len(y), 1, 1) < 0.9)).squeeze(1),
}


@pytest.mark.parametrize("how", DROPS)
def test_labels_that_a_model_drops_are_seen_however_it_does_it(how: str) -> None:
    class Dropping(Tiny):
        def conditioning(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().conditioning(t, y * 0) + DROPS[how](self, y, self.y_embedder.weight)

    example = (torch.zeros(4, 1, 8, 8), torch.full((4,), 500), torch.zeros(4).long())
    program = sparsify(Dropping(dropout=0.1).train(), POLICY, example).program
    assert drops_labels(program, "y") == (how not in ("none", "features", "noise on the table"))


def test_a_number_for_each_row_need_not_be_a_label(tmp_path: Path) -> None:
    unlabelled = Images(images().pixels)
    with pytest.raises(InputError, match=r"If y is something else, pass inputs=\{'labels': None\} \(--labels none\)"):
        run(tmp_path, 1, data=unlabelled, label_dropout=0.0)
    assert run(tmp_path, 1, data=unlabelled, label_dropout=0.0, inputs={"labels": None}).step == 1


def test_weights_in_other_dtypes_train(tmp_path: Path) -> None:
    result = run(tmp_path, 1, Policy.dense(), tiny().double(), example_inputs=(torch.zeros(1, 1, 8, 8).double(), *ids()))
    assert result.model.state_dict()["head.weight"].dtype == torch.float64


def ids() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(500), torch.zeros(1).long()


def test_example_inputs_get_the_rows_of_the_batch() -> None:
    given = {
        "x": torch.zeros(2, 1, 8, 8),
        "t": torch.tensor(7),
        "deep": {"text": torch.ones(2, 5), "table": torch.ones(9), "n": 3},
    }
    found = example_for(tiny(), images(), given, 6, CPU)
    assert found["x"].shape == (6, 1, 8, 8) and found["t"].tolist() == [7] * 6
    assert found["deep"]["text"].shape == (6, 5) and found["deep"]["table"].shape == (9,) and found["deep"]["n"] == 3


def test_inputs_are_guessed_from_usual_names_alone() -> None:
    assert {name: tuple(x.shape) for name, x in guessed(tiny(), images()).items()} == {"x": (1, 1, 8, 8), "t": (1,), "y": (1,)}
    with pytest.raises(InputError, match="forward takes 'input', and what that is cannot be told"):
        guessed(torch.nn.Linear(1, 1), images())


def test_roles_are_found_or_asked_for() -> None:
    program = sparse_tiny().program
    call = [torch.zeros(4, 1, 8, 8), torch.zeros(4).long(), torch.zeros(4).long()]
    assert Roles.of(program, call, (1, 8, 8), {}) == Roles("x", "t", "y")
    assert Roles.of(program, call, (1, 8, 8), {"timestep": "y", "labels": "t"}) == Roles("x", "y", "t")
    with pytest.raises(
        InputError, match=r"which input takes the images is not clear: none could. Pass inputs=\{'images': name\}"
    ):
        Roles.of(program, call, (1, 9, 9), {})
    assert known_labels(program, "y") == 4 and known_labels(program, "t") is None


def test_predictions_are_found_in_what_models_return() -> None:
    class Output:
        sample = torch.ones(2)

    for output in (torch.ones(2), (torch.ones(2), 5), [Output()], Output()):
        assert prediction(output).tolist() == [1, 1]
    with pytest.raises(TrainingError, match="the model returns a dict"):
        prediction({"sample": torch.ones(2)})


def test_blocks_whose_weights_are_read_outside_of_them_are_no_units_of_their_own() -> None:
    class Shared(Tiny):
        """All blocks have one modulation, which a saving takes out of them."""

        def __init__(self) -> None:
            super().__init__()
            for block in self.blocks[1:]:
                block.modulation = self.blocks[0].modulation

    example = (torch.zeros(2, 1, 8, 8), torch.full((2,), 500), torch.zeros(2).long())
    sparse = sparsify(Shared(), POLICY, example)
    with pytest.raises(TrainingError, match=r"weights of every block, such as .*modulation.1.\w+, are read outside of it"):
        shard(sparse, sparse.program, CPU)

    class Peeks(Tiny):
        """The head reads a block's weights, as in diffusers' DiT."""

        def finish(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return super().finish(x, c + self.blocks[1].modulation[1].bias[:24])

    sparse = sparsify(Peeks().train(), POLICY, example, savings=["narrow-linear", "share"])
    assert own_units(sparse, sparse.program) == {f"blocks.{i}" for i in (0, 2, 3)}
