"""What a study shows while it runs: a live table of the best trials on a terminal, a line a trial elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from hist_cache.console import Meter, duration, out, say
from sweeps.storage import FINISHED, Place
from sweeps.study import Plan
from sweeps.trials import ranked, values_of

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

BEST_SHOWN = 5
EVERY_S = 0.5


class StudyDisplay:
    """Follows a study in its storage, whoever runs its trials."""

    def __init__(self, plan: Plan, place: Place, live: Live | None) -> None:
        self.plan, self.place, self.live = plan, place, live
        self.seen = {t.number for t in place.study.get_trials(deepcopy=False) if t.state in FINISHED}
        self.meter = Meter("trials", plan.config.trials - len(self.seen), "trials")
        self.last = 0.0

    def tick(self) -> None:
        """Look at the study, not more often than every `EVERY_S`, and show what is new."""
        if time.monotonic() - self.last > EVERY_S:
            self.look()

    def look(self) -> None:
        self.last = time.monotonic()
        trials = self.place.study.get_trials(deepcopy=False)
        new = [t for t in trials if t.state in FINISHED and t.number not in self.seen]
        self.seen |= {t.number for t in new}
        self.meter.done += len(new)
        if self.live is not None:
            self.live.update(best_table(self.plan, trials, self.title(trials)), refresh=True)
            return
        for trial in new:
            say(f"{trial_line(self.plan, trial)}; {self.title(trials)}")

    def title(self, trials: Sequence[FrozenTrial]) -> str:
        """`57 of 100 trials, 21 pruned, ETA 3 min 20 s, best trial 31: 0.4123`."""
        pruned = sum(t.state == TrialState.PRUNED for t in trials)
        told = f"{len(self.seen)} of {self.plan.config.trials} trials, {pruned} pruned, ETA {self.eta()}"
        best = ranked(self.plan, trials)[:1]
        return told + "".join(f", best trial {t.number}: {t.value:.4f}" for t in best)

    def eta(self) -> str:
        return duration(self.meter.eta_s)


@contextmanager
def board(plan: Plan, place: Place) -> Iterator[StudyDisplay]:
    """Shows the study until it leaves."""
    if not out.is_terminal:
        shown = StudyDisplay(plan, place, None)
        yield shown
        shown.look()
        return
    from rich.live import Live

    with Live(console=out, auto_refresh=False, transient=True) as live:
        shown = StudyDisplay(plan, place, live)
        shown.look()
        yield shown
        shown.look()


def trial_line(plan: Plan, trial: FrozenTrial) -> str:
    """`trial 12: pcc@200 0.4123 (alpha 0.21, beta 0.4)`, or why it was ended."""
    values = in_words(values_of(plan, trial))
    if trial.state == TrialState.COMPLETE:
        return f"trial {trial.number}: {plan.objective} {trial.value:.4f} ({values})"
    epochs = sum(trial.user_attrs.get("epochs", ()))
    return f"trial {trial.number}: {trial.user_attrs.get('problem', 'pruned')} after {epochs} epochs ({values})"


def in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {text(value)}" for name, value in values.items())


def text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def best_table(plan: Plan, trials: Sequence[FrozenTrial], title: str) -> Table:
    """The best trials, for `console.out.print`."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("trial", plan.objective, *(p.name.replace("_", " ") for p in plan.space), "epochs"):
        table.add_column(name, justify="right", no_wrap=True)
    for trial in ranked(plan, trials)[:BEST_SHOWN]:
        number = f"{trial.number}, default" if trial.user_attrs.get("default") else str(trial.number)
        epochs = str(sum(trial.user_attrs.get("epochs", ())))
        cells = [text(v) for v in values_of(plan, trial).values()]
        table.add_row(number, f"{trial.value:.4f}", *cells, epochs)
    return table
