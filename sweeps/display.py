"""What a study shows while it runs: a live table of the best trials on a terminal, else one line for each trial."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from hist_cache.console import Meter, duration, out, say
from sweeps.storage import FINISHED, StudyStorage
from sweeps.study import StudyPlan
from sweeps.trials import ranked, values_of

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

BEST_SHOWN = 5
EVERY_S = 0.5


class StudyDisplay:
    """Shows the progress of a study, read from its storage, so that the trials of all workers are included."""

    def __init__(self, plan: StudyPlan, storage: StudyStorage, live: Live | None) -> None:
        self.plan, self.storage, self.live = plan, storage, live
        self.finished = {t.number for t in storage.study.get_trials(deepcopy=False) if t.state in FINISHED}
        self.meter = Meter("trials", plan.options.trials - len(self.finished), "trials")
        self.last_update = 0.0

    def tick(self) -> None:
        """Update the display, but not more often than every `EVERY_S` seconds."""
        if time.monotonic() - self.last_update > EVERY_S:
            self.update()

    def update(self) -> None:
        """Read the study and show the trials that finished since the last update."""
        self.last_update = time.monotonic()
        trials = self.storage.peek()
        if trials is None:
            return
        new = [t for t in trials if t.state in FINISHED and t.number not in self.finished]
        self.finished |= {t.number for t in new}
        self.meter.done += len(new)
        if self.live is not None:
            self.live.update(best_table(self.plan, trials, self.title(trials)), refresh=True)
            return
        for trial in new:
            say(f"{trial_line(self.plan, trial)}; {self.title(trials)}")

    def title(self, trials: Sequence[FrozenTrial]) -> str:
        """Describe the progress: `57 of 100 trials, 21 pruned, 12.0 trials/min, ETA 4 min, best trial 31: 0.4123`."""
        pruned = sum(t.state == TrialState.PRUNED for t in trials)
        eta = duration(self.meter.eta_s)
        done = f"{len(self.finished)} of {self.plan.options.trials} trials, {pruned} pruned"
        progress = f"{done}, {self.meter.pace}, ETA {eta}"
        best = ranked(self.plan, trials)[:1]
        return progress + "".join(f", best trial {t.number}: {t.value:.4f}" for t in best)


@contextmanager
def study_display(plan: StudyPlan, storage: StudyStorage) -> Iterator[StudyDisplay]:
    """Show the study until the context is left; yields the display, whose `tick` the caller calls while it waits."""
    if not out.is_terminal:
        display = StudyDisplay(plan, storage, None)
        yield display
        display.update()
        return
    from rich.live import Live

    with Live(console=out, auto_refresh=False, transient=True) as live:
        display = StudyDisplay(plan, storage, live)
        display.update()
        yield display
        display.update()


def trial_line(plan: StudyPlan, trial: FrozenTrial) -> str:
    """Describe a trial: `trial 12: pcc@200 0.4123 (alpha 0.21, beta 0.4)`, or why it was ended."""
    values = values_text(values_of(plan, trial))
    if trial.state == TrialState.COMPLETE:
        return f"trial {trial.number}: {plan.objective} {trial.value:.4f} ({values})"
    epochs = sum(trial.user_attrs.get("epochs", ()))
    return f"trial {trial.number}: {trial.user_attrs.get('problem', 'pruned')} after {epochs} epochs ({values})"


def values_text(values: Mapping[str, Any]) -> str:
    """Join the parameters' values in one line: `alpha 0.21, fixed curvature no`."""
    return ", ".join(f"{name.replace('_', ' ')} {value_text(value)}" for name, value in values.items())


def value_text(value: Any) -> str:
    """Format one parameter's value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def best_table(plan: StudyPlan, trials: Sequence[FrozenTrial], title: str, width: int | None = None) -> Table:
    """Make a table of the best trials, for `console.out.print`.

    Args:
        plan: The study.
        trials: All of them.
        title: Of the table.
        width: In characters (default: that of the terminal). Where it does not hold a column for each parameter, all
            are in one column, which takes several lines.
    """
    from rich.markup import escape
    from rich.table import Table

    width = out.width if width is None else width
    names = [p.name.replace("_", " ") for p in plan.space]
    best = ranked(plan, trials)[:BEST_SHOWN]
    head = ["trial", plan.objective, "epochs", *names]
    rows = [[*_numbers(trial), *map(value_text, values_of(plan, trial).values())] for trial in best]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    fits = sum(widths) + 3 * len(widths) + 1 <= width
    if not fits:
        head = ["trial", plan.objective, "epochs", "settings"]
        rows = [[*_numbers(trial), values_text(values_of(plan, trial))] for trial in best]
    table = Table(title=escape(textwrap.fill(title, width)), title_justify="left")
    for i, name in enumerate(head):
        is_text = not fits and i == len(head) - 1
        table.add_column(escape(name), justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _numbers(trial: FrozenTrial) -> tuple[str, str, str]:
    """A trial's number, score and epochs, as texts."""
    number = f"{trial.number}, default" if trial.user_attrs.get("default") else str(trial.number)
    return number, f"{trial.value:.4f}", str(sum(trial.user_attrs.get("epochs", ())))
