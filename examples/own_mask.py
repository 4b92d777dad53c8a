"""A mask method of one's own: |weight| over the norm of all that feeds the same output, so that no filter starves.

In this folder:  python -m harness.sweep own_mask.yaml

A score takes the model and, by parameter name, whatever else it needs of `batches`, `shape` and `generator`; its own
parameters are knobs. It returns a tensor of the weight's shape for every prunable weight, and changes nothing. The
weights with the highest scores are kept, exactly as many as the sparsity says.
"""

from torch import Tensor, nn

from tost import prunable


def score(model: nn.Module, power: float = 1.0) -> dict[str, Tensor]:
    """Score by |weight| / (norm of its output's weights)^power; power 0 is plain magnitude."""
    found = {}
    for name, weight in prunable(model).items():
        rows = weight.detach().flatten(1)  # [outputs, all that feeds one]
        norms = rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        found[name] = (rows.abs() / norms**power).view_as(weight)
    return found
