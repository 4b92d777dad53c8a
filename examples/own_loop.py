"""The library alone in a plain PyTorch loop: a SNIP mask and ghost soft neurons on handwritten digits.

Run it anywhere:  python own_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from tost import SoftActivation, apply_masks, density, find_masks, keep_count, prunable
from tost.masks.scores import snip

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # [1797, 1, 8, 8]
labels = torch.tensor(digits.target)
net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))

keep = keep_count(sum(weight.numel() for weight in prunable(net).values()), 0.1)
masks = find_masks(snip, net, keep, offered={"batches": [(images[:100], labels[:100])]})
apply_masks(net, masks)
soft = SoftActivation(window=(0.25, 0.5))
soft.attach(net)
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
for step in range(300):
    soft.step(step / 300)
    batch = torch.randint(1400, (64,))
    optimizer.zero_grad()
    cross_entropy(net(images[batch]), labels[batch]).backward()
    optimizer.step()
    apply_masks(net, masks)  # pruned weights are exactly 0 after every step
accuracy = (net.eval()(images[1400:]).argmax(1) == labels[1400:]).float().mean()
print(f"density {density(masks):.3f}, test accuracy {100 * accuracy:.1f} %")
