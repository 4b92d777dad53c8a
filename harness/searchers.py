"""Who suggests settings and who stops trials: random draws, Optuna's sampler, Tune's successive halving."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from harness.errors import UserError
from harness.form import Search
from harness.study import Study

VALUE, EPOCH = "value", "epoch"


class Suggester(Protocol):
    """Suggests the settings of a trial, and learns how trials ended."""

    def ask(self) -> dict[str, Any] | None:
        """Return settings for a new trial; None where there is nothing left to try."""

    def tell(self, settings: Mapping[str, Any], value: float | None) -> None:
        """Take in how a trial ended, asked for here or in an earlier call; None: it failed."""


class Drawn:
    """Suggests random draws. What they are depends on the study's seed and count alone, never on what came of them."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def ask(self) -> dict[str, Any] | None:
        """Return settings drawn at random."""
        return self.study.draw()

    def tell(self, settings: Mapping[str, Any], value: float | None) -> None:
        """Learn nothing."""


class Modelled:
    """Suggests what Optuna's sampler expects to be good (tree-structured Parzen estimator; Bergstra et al., 2011)."""

    def __init__(self, study: Study, mode: str) -> None:
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("optuna").setLevel(logging.WARNING)
        self.study, self.asked = study, list[dict[str, Any]]()
        """All that was suggested here; what stands where is its name with Optuna."""
        seed = study.seed + len(study.trials)  # another than the call before had, whose first draws would come again
        self.search = OptunaSearch(
            space=OptunaSearch.convert_search_space(_domains(study)), metric=VALUE, mode=mode, seed=seed
        )

    def ask(self) -> dict[str, Any] | None:
        """Return what the sampler suggests; a repetition is replaced by a random draw."""
        found = self.search.suggest(str(len(self.asked))) or {}
        settings = {d.axis: d.tidy(_chosen(d.values, found[d.axis])) for d in self.study.space}
        self.asked.append(settings)
        if settings in [trial.settings for trial in self.study.trials]:
            self.search.on_trial_complete(str(len(self.asked) - 1), error=True)
            return self.study.draw()
        return settings

    def tell(self, settings: Mapping[str, Any], value: float | None) -> None:
        """Tell the sampler of a trial."""
        if settings in self.asked:
            result = None if value is None else {VALUE: value}
            self.search.on_trial_complete(str(self.asked.index(dict(settings))), result, error=value is None)
        elif value is not None:
            told = {d.axis: _numbered(d.values, settings[d.axis]) for d in self.study.space}
            self.search.add_evaluated_point(told, value)


def _domains(study: Study) -> dict[str, Any]:
    from ray import tune

    made = {"uniform": tune.uniform, "loguniform": tune.loguniform}
    return {
        d.axis: tune.choice(list(range(len(d.values))))  # by number: Optuna stores plain values only
        if d.kind == "choice"
        else tune.randint(int(d.low), int(d.high) + 1)
        if d.kind == "integer"
        else made[d.kind](d.low, d.high)
        for d in study.space
    }


def _chosen(values: Sequence[Any], found: Any) -> Any:
    return values[found] if values else found


def _numbered(values: Sequence[Any], setting: Any) -> Any:
    return list(values).index(setting) if values else setting


def suggester(study: Study, form: Search) -> Suggester:
    """Return who suggests for a study. Raises UserError where its library is missing."""
    if form.searcher == "random" or not study.space:
        return Drawn(study)
    if importlib.util.find_spec("optuna") is None:
        raise UserError("searcher: optuna needs a package that is not installed: pip install optuna; or write random")
    return Modelled(study, form.best)


class Halving:
    """Stops trials that are behind: Tune's asynchronous successive halving, fed with rows of earlier calls too."""

    def __init__(self, form: Search, epochs: int) -> None:
        self.asha: Any = None
        if form.asha is not None and form.asha.grace < epochs:
            from ray.tune.schedulers import AsyncHyperBandScheduler

            self.asha = AsyncHyperBandScheduler(
                time_attr=EPOCH,
                metric=VALUE,
                mode=form.best,
                max_t=epochs,
                grace_period=form.asha.grace,
                reduction_factor=form.asha.reduction,
            )
        self.epochs, self.known = epochs, set[str]()

    def behind(self, name: str, epoch: int, value: float) -> bool:
        """Take in a trial's value after an epoch; return whether it should be stopped there."""
        if self.asha is None or epoch >= self.epochs:
            return False
        trial = SimpleNamespace(trial_id=name)  # all that the scheduler reads of one
        if name not in self.known:
            self.known.add(name)
            self.asha.on_trial_add(None, trial)
        return bool(self.asha.on_trial_result(None, trial, {EPOCH: epoch, VALUE: value}) == "STOP")
