"""Trials of a search as an Optuna study: drawn, stopped early by successive halving, and recorded in a journal file."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.errors import UserError
from harness.form import Search
from harness.space import Dimension
from harness.store import digest, publish, read_json
from harness.study import DONE, OPEN, STOPPED, Standing, Study, Trial

JOURNAL = "journal.log"
REDRAWS = 50
"""Draws in a row that were all tried before, after which a space counts as exhausted."""
GRACE = 30
"""Seconds in which a lock does not change hands, after which its holder counts as killed."""
DRAW, CALL, HALVING = "draw", "call", "halving"

optuna.logging.set_verbosity(optuna.logging.WARNING)


class JournalLock(JournalFileOpenLock):
    """Optuna's lock of a journal. What a killed holder has half written is removed before the next line is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), GRACE)
        self.path = path

    def acquire(self) -> bool:
        """Wait for the lock, and make the journal end with a whole line."""
        taken = super().acquire()
        try:
            with self.path.open("rb+") as file:
                if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        except BaseException:
            self.release()
            raise
        return taken

    def release(self) -> None:
        """Remove the lock file, unless another process has: it took this one, frozen for so long, for killed."""
        with contextlib.suppress(RuntimeError):
            super().release()


class Trials:
    """The trials of one study, in a journal that calls on several machines share.

    A trial is appended in one line, with the index of its draw. Where two calls have appended the same draw, the first
    one counts. So a killed call leaves no half trial behind, and what is drawn depends on the journal alone.
    """

    def __init__(self, study: Study, form: Search) -> None:
        """Read the journal. Raises UserError where it is damaged."""
        self.study, self.form = study, form
        self.path = study.folder / JOURNAL
        self.space = {dimension.axis: _distribution(dimension) for dimension in study.space}
        self.direction = StudyDirection.MAXIMIZE if form.best == "max" else StudyDirection.MINIMIZE
        self.epochs = study.cell.protocol.epochs
        asha = form.asha if form.asha and form.asha.grace < self.epochs else None
        self.pruner = SuccessiveHalvingPruner(asha.grace, asha.reduction) if asha else None
        self.halving = [asha.grace, asha.reduction] if asha else []
        self.begun: list[FrozenTrial] = []
        """By draw."""
        self.earlier = list(_earlier(study.folder))
        self.storage: BaseStorage = InMemoryStorage()  # until there is a journal
        self.optuna = optuna.create_study(storage=self.storage)
        self.kept = False
        """Whether the journal has this study."""
        self.look()

    def __iter__(self) -> Iterator[Trial]:
        """Iterate over the trials that were begun."""
        return map(self._trial, range(len(self.begun)))

    def look(self) -> None:
        """Read the trials that other calls have begun, reported and ended; nothing is locked or written.

        Raises UserError where the journal is damaged.
        """
        with self._reading():
            if isinstance(self.storage, InMemoryStorage) and self.path.exists():
                self.storage = self._journal()
            if not self.kept and self.study.identity in optuna.get_all_study_names(self.storage):
                self.optuna = optuna.load_study(study_name=self.study.identity, storage=self.storage)
                self.kept = True
            found: dict[int, FrozenTrial] = {}
            for trial in self.optuna.get_trials(deepcopy=False):
                found.setdefault(trial.user_attrs[DRAW], trial)
            mine = [settings for identity, settings in self.earlier if identity == self.study.identity]
            draws = range(max(len(found), len(mine)))
            self.begun = [found[draw] if draw in found else self._made(draw, mine[draw]) for draw in draws]

    def _keep(self) -> None:
        """Create the study in the journal, with the trials of the earlier form, as far as they are not there."""
        with self._reading():
            if not self.kept:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.storage = self._journal()
                self.optuna = optuna.create_study(
                    storage=self.storage, study_name=self.study.identity, direction=self.direction, load_if_exists=True
                )
                self.kept = True
        self.look()
        for trial in [trial for trial in self.begun if trial.number < 0]:
            self.optuna.add_trial(trial)
        self.look()

    def _journal(self) -> JournalStorage:
        return JournalStorage(JournalFileBackend(str(self.path), lock_obj=JournalLock(self.path)))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise UserError where Optuna cannot make sense of the journal, which it tells by any of these errors."""
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            raise UserError(
                f"{self.path}: this journal of a search is damaged, or was written by a newer Optuna ({error}); "
                "install that, or remove the file: random draws come again, and what is trained is not trained twice"
            ) from None

    def spent(self) -> int:
        """Return how many trials this place has cost, those of other spaces and settings among them."""
        spent = Counter(identity for identity, _ in self.earlier)
        with self._reading():
            for name in optuna.get_all_study_names(self.storage):
                found = optuna.load_study(study_name=name, storage=self.storage).get_trials(deepcopy=False)
                spent[name] = max(spent[name], len({trial.user_attrs[DRAW] for trial in found}))
        return spent.total()

    def draw(self) -> dict[str, Any] | None:
        """Return settings for the next trial; None where all were tried.

        The sampler is seeded by the draw's index: random draws depend on nothing else, those of the tree-structured
        Parzen estimator (Bergstra et al., 2011) on the trials so far. A repetition is replaced by a random draw.
        """
        self.look()
        tried = [trial.settings for trial in self]
        for again in range(REDRAWS):
            seed = int(digest([self.form.seed, self.study.identity, len(tried), again])[:8], 16)
            random = again or self.form.searcher == "random"
            study = self._copy(self.begun, RandomSampler(seed) if random else TPESampler(seed=seed))
            params = study.ask(self.space).params
            settings = {d.axis: d.tidy(_decoded(d, params[d.axis])) for d in self.study.space}
            if settings not in tried:
                return settings
        return None

    def begin(self, settings: Mapping[str, Any]) -> Trial | None:
        """Append a trial; return None where another call was faster to append this draw."""
        trial = self._made(len(self.begun), settings)
        self._keep()
        self.optuna.add_trial(trial)
        self.look()
        draw, call = trial.user_attrs[DRAW], trial.user_attrs[CALL]
        return self._trial(draw) if self.begun[draw].user_attrs[CALL] == call else None

    def _made(self, draw: int, settings: Mapping[str, Any]) -> FrozenTrial:
        params = {d.axis: _encoded(d, settings[d.axis]) for d in self.study.space}
        attributes = {DRAW: draw, CALL: secrets.token_hex(8), HALVING: self.halving}
        state = TrialState.RUNNING
        return create_trial(state=state, params=params, distributions=self.space, user_attrs=attributes)

    def report(self, trial: Trial, epoch: int, value: float) -> None:
        """Record a trial's value after an epoch; where it is behind, create the file that stops it.

        It is judged among the trials that were begun under the same scheduler: others' values are of other epochs.
        """
        with contextlib.suppress(UpdateFinishedTrialError):  # another call has told how it ended
            self.storage.set_trial_intermediate_value(self._id(trial), epoch, value)
            self.look()
            alike = [each for each in self.begun if each.user_attrs[HALVING] == self.halving]
            mine = self.begun[trial.number - 1]
            if self.pruner is None or epoch >= self.epochs or mine not in alike:
                return
            # on a copy first: a pruner records a value as judged before it answers, and a kill would lose the answer
            copy = self._copy(alike)
            if self.pruner.prune(copy, copy.trials[alike.index(mine)]):
                publish(trial.stop, f"{epoch}\n".encode())
            self.pruner.prune(self.optuna, mine)

    def record(self, trial: Trial, values: Iterable[tuple[int, float]], standing: Standing) -> None:
        """Record what the store has of a trial: epochs that were not reported or judged, and how it ended.

        A failure is not recorded: Optuna could not take it back when its stage is to be tried again.
        """
        self._keep()
        if self.begun[trial.number - 1].state.is_finished():
            return
        last = self.begun[trial.number - 1].last_step or 0
        for epoch, value in values:
            if epoch >= last:
                self.report(trial, epoch, value)
        with contextlib.suppress(UpdateFinishedTrialError):
            number = self.begun[trial.number - 1].number
            if standing.name == DONE:
                self.optuna.tell(number, standing.value, skip_if_finished=True)
            if standing.name == STOPPED:
                self.optuna.tell(number, state=TrialState.PRUNED, skip_if_finished=True)

    def standing(self, trial: Trial) -> Standing:
        """Return how a trial ended as far as it is recorded; else it is open."""
        found = self.begun[trial.number - 1]
        if not found.state.is_finished():
            return Standing(OPEN)
        return Standing(DONE if found.state == TrialState.COMPLETE else STOPPED, found.value, found.last_step or 0)

    def _trial(self, draw: int) -> Trial:
        params = self.begun[draw].params
        settings = {d.axis: _decoded(d, params[d.axis]) for d in self.study.space}
        mark = digest([self.study.identity, settings])[:8]  # a journal that was removed leaves its files behind
        return Trial(draw + 1, settings, self.study.folder / f"{draw + 1:05d}-{mark}.stop")

    def _id(self, trial: Trial) -> int:
        study = self.storage.get_study_id_from_name(self.study.identity)
        return self.storage.get_trial_id_from_study_id_trial_number(study, self.begun[trial.number - 1].number)

    def _copy(self, trials: Iterable[FrozenTrial], sampler: BaseSampler | None = None) -> optuna.Study:
        """Return a study of trials in memory, numbered in their order: what is changed there is recorded nowhere."""
        copy = optuna.create_study(direction=self.direction, sampler=sampler)
        copy.add_trials(trials)
        return copy


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == "choice":
        return CategoricalDistribution([json.dumps(value) for value in dimension.values])
    if dimension.kind == "integer":
        return IntDistribution(int(dimension.low), int(dimension.high))
    return FloatDistribution(dimension.low, dimension.high, log=dimension.kind == "loguniform")


def _encoded(dimension: Dimension, setting: Any) -> Any:
    return json.dumps(setting) if dimension.kind == "choice" else dimension.tidy(setting)


def _decoded(dimension: Dimension, param: Any) -> Any:
    return {json.dumps(value): value for value in dimension.values}[param] if dimension.kind == "choice" else param


def _earlier(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield identity and settings of trials in the form that was used before Optuna's, a file each."""
    for path in sorted(folder.glob("*.json")):
        body = read_json(path) or {}
        if isinstance(body.get("settings"), dict) and isinstance(body.get("identity"), str):
            yield body["identity"], body["settings"]
