"""Sparsify a small DiT, look at what became of it, run it, train it one step.

python examples/quickstart.py
"""

import torch

from sparsify import SDTM, Density, Policy, sparsify
from sparsify.models import dit

model, inputs = dit("DiT-S/2", 256)  # any nn.Module with a chain of repeated blocks will do
policy = Policy(poolingformer=1, sdtm=SDTM(1, 2, 1, 1) * 2, dense=1, density=Density.paper(r_min=0.61, r_max=0.86))

sparse = sparsify(model, policy, example_inputs=inputs)
print(sparse.report())
print(sparse.graph_module.graph)

output = sparse(**inputs).sample  # called like the model
print("output", tuple(output.shape))

optimiser = torch.optim.AdamW(sparse.parameters(), lr=1e-4)  # the model's parameters and the new restore layers
output.square().mean().backward()
optimiser.step()

missing, unexpected = sparse.load_state_dict(model.state_dict(), strict=False)  # a dense checkpoint fits
print("new in the sparse model:", missing)
