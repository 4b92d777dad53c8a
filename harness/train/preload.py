"""What the fork server loads before it forks trainers. It belongs to the trainers' process group, and so is sent the
signals that ask them to save and leave: it must outlive those.
"""

import signal

import harness.train.process
from harness.train.process import set_mode
from harness.trainer_signals import HEEDED

__all__ = ["harness"]

for _number in HEEDED:
    signal.signal(_number, signal.SIG_IGN)

set_mode(fast=False)  # what this loads of torch takes as long as all the rest: here once, and not in every trainer
