"""The mirror beside a sweep command: a thread that no training waits for, and that ends with the command."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Iterator

from harness.errors import UserError
from harness.form import Wandb
from harness.store import Store
from harness.terminal import command, cron_line, note
from harness.tracking.settings import DISABLED, OFFLINE, read_settings, settings_of, switched_off
from harness.tracking.sync import Mirror, back_off, connected, leased
from harness.tracking.wandb_process import WandbUnavailable

QUIET = 20.0
"""Seconds without an answer to a run after which the command waits for its mirror no longer."""


class BackgroundMirror:
    """The thread; the server may fail, hang or be away, and it tries again."""

    def __init__(self, store: Store, sweep: str) -> None:
        self.store, self.sweep = store, sweep
        self.stopped = threading.Event()
        self.mirror: Mirror | None = None
        self.later = f"`{command('wandb', 'sync', sweep, store=store.root)}` sends what is missing later"
        self.thread = threading.Thread(target=self._run, name="wandb mirror", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        """Mirror until the command ends and all has come. A mistake in here ends the mirror and nothing else."""
        failures, told = 0, ""
        try:
            while not failures or not self.stopped.wait(back_off(failures)):
                try:
                    self._mirror()
                    if self.stopped.is_set():
                        return
                except (WandbUnavailable, OSError) as error:
                    failures, was, told = failures + 1, told, str(error)
                    if told != was:
                        note(f"wandb: nothing is mirrored: {error}; {self.later}")
        except UserError as error:
            note(f"wandb: {error}")
        except Exception as error:
            note(f"wandb: the mirror ended by a mistake of its own ({error!r}); {self.later}")
            note(traceback.format_exc())

    def _mirror(self) -> None:
        while not read_settings(self.store, self.sweep):  # a search writes its plan with its first trial
            if self.stopped.wait(1.0):
                return
        (settings,) = settings_of(self.store, [self.sweep])
        with connected(self.store, settings, note) as mirror, leased(mirror, self.stopped) as lease:
            self.mirror, mirror.live = mirror, True
            mirror.say(f"wandb: mirrored to {mirror.project}")
            mirror.say(mirror.summary(mirror.follow(lease, self.stopped, until_stopped=True), self.later))

    def close(self) -> None:
        """Send what is left, for as long as the server takes it and nobody presses Ctrl-C."""
        self.stopped.set()
        began = time.monotonic()
        try:
            self.thread.join(2.0)
            if self.thread.is_alive():
                note(f"wandb: sending the last runs; Ctrl-C ends that, and {self.later}")
            while self.thread.is_alive():
                self.thread.join(0.2)
                active = max(began, self.mirror.active if self.mirror else 0.0)
                if self.thread.is_alive() and time.monotonic() - active > QUIET:
                    return note(f"wandb: the server has not answered for {QUIET:.0f} s; {self.later}")
        except KeyboardInterrupt:
            note(f"wandb: stopped; {self.later}")


@contextlib.contextmanager
def mirrored(block: Wandb | None, store: Store, sweep: str, stays: bool) -> Iterator[None]:
    """Mirror a sweep while the block runs, where its file says so; say how it is done where no command `stays`."""
    now = stays and block is not None and block.mode not in (DISABLED, OFFLINE) and not switched_off()
    if not now:
        say_how_to_mirror(block, store, sweep)
    with contextlib.closing(BackgroundMirror(store, sweep)) if now else contextlib.nullcontext():
        yield


def say_how_to_mirror(block: Wandb | None, store: Store, sweep: str) -> None:
    """Say which command mirrors a sweep that is not mirrored by the sweep command."""
    if block is None or block.mode == DISABLED:
        return
    sync = command("wandb", "sync", sweep, store=store.root)
    if why := "as its file asks for" if block.mode == OFFLINE else switched_off():
        note(f"wandb: nothing is sent, {why}; `{sync}` sends it later")
    else:
        note(f"wandb: `{sync} --follow` mirrors it, or this line of a crontab:")
        note(cron_line("wandb", "sync", sweep, store=store.root))
        note("cron finds the key where `wandb login` writes it, in ~/.netrc, and not in WANDB_API_KEY")
