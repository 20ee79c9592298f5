"""One run of an evaluation: describe, predict, attack, probe, report. The store decides what is left to do."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from monai_adv.errors import InputError
from monai_adv.evaluation.checks.probes import CASES, most_passes, spread
from monai_adv.evaluation.clock import now
from monai_adv.evaluation.costs import Cost, Costs, Measured, Predicted, Size
from monai_adv.evaluation.described import Evaluation, LevelEntry, ModelEntry
from monai_adv.evaluation.evidence import history
from monai_adv.evaluation.evidence.code import code_hash
from monai_adv.evaluation.evidence.document import digest_in
from monai_adv.evaluation.evidence.group_table import GroupTable
from monai_adv.evaluation.evidence.purpose import Purpose
from monai_adv.evaluation.models.fingerprint import Marks
from monai_adv.evaluation.models.protocol import Source, check_distinct
from monai_adv.evaluation.records import Record, is_variation
from monai_adv.evaluation.report.trained import trained
from monai_adv.evaluation.run.parts import Finished, Parts
from monai_adv.evaluation.run.workers import Described, Job, Killed, Pool, ThisProcess, forget
from monai_adv.evaluation.sealed_folder import is_begun
from monai_adv.evaluation.search import cost
from monai_adv.evaluation.search.cost import Timing, duration
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import (
    Store,
    read_cost,
    read_probes,
    read_problems,
    read_records,
    usable_records,
)
from monai_adv.exit_codes import ExitCode
from monai_adv.files import unlocked
from monai_adv.foreign_text import say
from monai_adv.progress_bar import tqdm
from monai_adv.statistics import Passes
from monai_adv.wording import counted

SAMPLE = 20
"""Cases of a model that a dry run reads: enough for a prediction, and minutes less than reading thousands."""


class Session:
    """Run it with :meth:`prepare`, then :meth:`finish`; :meth:`close` in any case.

    Args:
        sources: of the models.
        settings: of the evaluation.
        folder: of the store.
        pool: who does the work.
        say: prints a line.
        bars: show how far it is.
        asked: the run file of this evaluation, for the report; "" from Python.
        purpose: what the models are for, with acceptance criteria; None: as stated before.
        groups: of the cases; None: as given before.
        parts: what is done around the attacks.

    Attributes:
        resumed: the folder held finished records already.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        settings: EvaluationSettings,
        folder: Path,
        pool: Pool,
        say: Callable[[str], None] = say,
        bars: bool = True,
        asked: str = "",
        purpose: Purpose | None = None,
        groups: GroupTable | None = None,
        parts: Parts = Parts(),  # noqa: B008  frozen
    ) -> None:
        self.run = run = uuid.uuid4().hex
        self.bars, self.asked, self.purpose, self.groups = bars, asked, purpose, groups
        self.parts = parts
        self.jobs = [Job(run, each, settings, str(folder), number, parts) for number, each in enumerate(sources)]
        self.settings, self.folder, self.pool, self.say = settings, folder, pool, say
        self.store = Store(folder)
        self.models: list[ModelEntry] = []
        self.sizes: list[dict[str, Size]] = []
        self.varied: list[dict[str, Size]] = []
        self._passes: list[dict[str, tuple[Passes, ...]]] = []
        self.resumed = False
        self._evaluation: Evaluation | None = None
        self._marks: dict[str, Marks] = {}
        self._at_most: Cost | None = None
        self._timings = [(Timing(1.0, 1.0), Timing(1.0, 1.0)) for _ in sources]
        self._sampled = 1.0
        self._lock: TextIO | None = None

    def prepare(self, write: bool = True) -> None:
        """Open the models, look at the cases, predict the cost. A new folder is not begun yet.

        Args:
            write: go on with the folder if it holds this evaluation; look at all cases, not only at a sample.

        Raises:
            InputError: a model that does not load, no case that can be used, a folder that cannot be used.
        """
        if self.purpose:
            self.purpose.check_levels(self.settings.levels)
        if write:
            self.store.check_place()
        told: list[Described] = self._all([(job.describe,) for job in self.jobs])
        self.models, self._passes = [each.model for each in told], [each.most for each in told]
        self._check_models()
        if write:
            identified = self._all([(j.identify, entry) for j, entry in zip(self.jobs, self.models, strict=True)])
            self.models = [entry for entry, _ in identified]
            self._marks = {entry.name: of_files for entry, of_files in identified}
        self._evaluation = Evaluation(
            started=now(),
            machine=told[0].machine,
            versions=told[0].versions,
            settings=self.settings.entry(),
            levels=tuple(map(LevelEntry.of, self.settings.levels)),
            words={v.key: v.words for v in self.settings.levels if v.words},
            models=tuple(self.models),
            run_file=self.asked,
        )
        goes_on = write and is_begun(self.folder)
        if goes_on:
            self._open()
            self.resumed = bool(read_records(self.folder))
        self._survey(goes_on, sample=not write)
        if not self.resumed:
            self._bound()

    def finish(self) -> Finished:
        """All that is left, and the report.

        Returns:
            the exit code, and what the report shows.

        Raises:
            InputError: no case could be used, or the folder cannot be used.
        """
        # Only now: input that was refused, or not agreed to, leaves no folder that the corrected command has to fit.
        self._open()
        self._keep_history()
        names = [model.name for model in self.models]
        sizes, varied = (dict(zip(names, found, strict=True)) for found in (self.sizes, self.varied))
        told = varied if self.settings.variations else None
        self.store.add_cost(Costs(bound=self._at_most, sizes=sizes, varied=told))
        self._run_cases()
        if not usable_records(self.folder):
            model, case, reason = next(problem for problem in read_problems(self.folder) if problem[1])
            raise InputError(f"cases: none could be used. {model}, {case}: {reason}")
        self._measured()
        self.store.drop_partials()  # nobody has anything left to write
        results = self.parts.gather(self.folder)
        both = import_module("monai_adv.evaluation.report.bounds")  # these draw the statistics of a report in with them
        words = import_module("monai_adv.evaluation.figures.sentences")
        tables = import_module("monai_adv.evaluation.figures.tables")
        bounds = both.bounds_of(self.folder, results)
        page = self.parts.write_page(self.folder, results, bounds)
        problems = results.problems
        self.say(tables.summary_table(results))
        for model, case, reason in problems:
            self.say(f"not used: {model}{', ' + case if case else ''}: {reason}")
        for model, case, note in results.notes:
            self.say(f"to be looked at: {model}, {case}: {note}")
        for found in results.models:
            reasons = "; ".join(found.verdict.reasons)
            self.say(f"{found.name}: figures {found.verdict.word}" + (f" ({reasons})" if reasons else ""))
            robust = words.robustness(found, results.levels)
            self.say(f"{found.name}: {robust.word}, {robust.text}")
            if (known := trained(found.probes, results.levels)) and known.warning:
                self.say(f"{found.name}: {known.warning}")
        purpose = import_module("monai_adv.evaluation.evidence.summary")
        for line in purpose.told(purpose.summary_of(results, history.sessions(self.folder), "", self.folder)):
            self.say(line)
        for line in both.told(bounds):
            self.say(line)
        self.say(f"Report: {page}")
        if digest := digest_in(self.folder):
            self.say(f"Evidence: {self.folder / 'evidence.json'}; keep its digest elsewhere: {digest}")
        if any(found.verdict.word == "not reliable" for found in results.models) or any(b.beaten for b in bounds):
            return Finished(ExitCode.NOT_RELIABLE, results)
        return Finished(ExitCode.CASES_LEFT_OUT if problems else ExitCode.FINISHED, results)

    def close(self) -> None:
        """Give the folder and the models free."""
        forget(self.run)
        unlocked(self._lock)
        self._lock = None

    def _open(self) -> None:
        """Start the folder or go on with it, for this process alone.

        Raises:
            InputError: it cannot be used, or another process uses it.
        """
        if self._lock is None:
            self._lock = self.store.lock()
        assert self._evaluation is not None
        self.store = Store.open(self.folder, self._evaluation, self._marks)

    def _keep_history(self) -> None:
        assert self._evaluation is not None
        history.Session(
            at=self._evaluation.started,
            machine=self._evaluation.machine,
            records=len(read_records(self.folder)),
            command=self.asked,
            code=code_hash(),
            purpose=self.purpose,
            subgroups=self.groups.hash if self.groups else "",
        ).keep(self.store)
        if self.groups:
            self.store.add_subgroups(self.groups)

    def _all(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Results of (function, arguments...), in their order.

        Raises:
            InputError: a process was killed.
        """
        results = [result for _, result in sorted(self.pool.run(_call, calls), key=lambda pair: pair[0])]
        for i, result in enumerate(results):
            if isinstance(result, Killed):
                raise InputError(f"model {i + 1}: cannot be opened or called; {result.reason}.")
        return results

    def _check_models(self) -> None:
        names = [model.name for model in self.models]
        check_distinct("models", names, "the host says how to name a model")
        for model in self.models:
            check_distinct(f"classes of {model.name}", model.classes, "rename one where the model describes them")
            check_distinct(f"cases of {model.name}", model.cases, "rename one of the files")
        if len({model.kind for model in self.models}) > 1:
            kinds = {model.name: model.kind for model in self.models}
            raise InputError.of("models", kinds, "only classifiers or only segmentation models in one comparison")
        for model in self.models:
            if self.purpose:
                self.purpose.check_model(model.name, model.kind, model.classes)
        if self.groups:
            calls = [(self.jobs[i].scored, case) for i, model in enumerate(self.models) for case in model.cases]
            self.groups.check(name for names in self._all(calls) for name in names)

    def _survey(self, goes_on: bool, sample: bool) -> None:
        """Load every case once, or a sample: its size, and whether it can be used, before hours of attacks."""
        costs = read_cost(self.folder) if goes_on else Costs()
        self.sizes, self.varied = (
            [dict((known or {}).get(model.name, {})) for model in self.models] for known in (costs.sizes, costs.varied)
        )
        looked_at: list[list[str]] = [spread(m.cases, SAMPLE) if sample else list(m.cases) for m in self.models]
        self._sampled = sum(map(len, looked_at)) / sum(len(m.cases) for m in self.models)
        todo = [(i, case) for i, cases in enumerate(looked_at) for case in cases if case not in self.sizes[i]]
        calls = [(self.jobs[i].survey, case) for i, case in todo]
        reasons: dict[int, str] = {}
        quiet, unit = not calls or not self.bars, "case" if self._one == "case" else "group"
        for number, found in tqdm(self.pool.run(_call, calls), "reading", len(calls), unit=unit, disable=quiet):
            i, case = todo[number]
            if isinstance(found, tuple):
                self.sizes[i][case], self.varied[i][case] = found
            else:
                reasons.setdefault(i, f"{case}: {found.reason if isinstance(found, Killed) else found}")
        for i, model in enumerate(self.models):
            if not self.sizes[i]:
                raise InputError(f"{model.name}: no case can be used. {reasons[i]}")

    def _bound(self) -> None:
        """An upper bound of the cost, from the time of a pass."""
        total = Cost(0, 0, 0.0)
        timings = self._all([(job.timing, spread(self._good(i), SAMPLE)) for i, job in enumerate(self.jobs)])
        if self.settings.fuse:  # a pass of the probes takes longer than one of the attacks
            self._timings = timings
        for i, of_model in enumerate(timings):
            for part in self._most(i, *of_model):
                total += part
        read = self._counted((i, case) for i in range(len(self.jobs)) for case in self._good(i))
        about = "about " * (self._sampled < 1 and self._one == "image")  # groups of images need not be of one size
        self.say(
            f"{counted(len(self.models), 'model')}, {about}{counted(round(read / self._sampled), self._one)}, "
            f"{counted(len(self.settings.levels), 'level')}: at most "
            f"{total.forward} forward and {total.backward} backward passes of one input, about "
            f"{duration(total.seconds / self.pool.workers)}; less if attacks succeed early."
            + ("" if self._sampled == 1 else f" Only {counted(read, self._one)} of them were looked at.")
        )
        case = next(iter(self._good(0)))
        (radii,) = self._all([(self.jobs[0].radii, case)])
        self.say(f"Radii, for an input of {self.models[0].name}: {'; '.join(radii)}.")
        self._at_most = total

    def _most(self, i: int, attacks: Timing, probes: Timing) -> tuple[Cost, Cost]:
        """Upper bounds for a model's cases, and for its probes, whose passes take so long."""
        model, sizes = self.models[i], self.sizes[i]
        varied = sum(is_variation(entry.name) for entry in model.corruptions)
        corrupted = len(model.corruptions) - varied
        largest = self.varied[i].values() if varied else None
        smooth, fuse = self.settings.smooth, self.settings.fuse
        cases = cost.bound(self._passes[i], sizes.values(), attacks, corrupted, varied, largest, smooth, fuse)
        probed = most_passes(model.kind, self.settings.levels, self.settings.version, self.settings.box is not None)
        probing = cost.priced(probed, [sizes[case] for case in self._probed(i)], probes)
        return cases.times(1 / self._sampled), probing

    def _run_cases(self) -> None:
        """The pilot, a prediction, then the probes and all other cases."""
        pilot, rest = self._tasks()
        records = sum(_records_per_case(m) * len(m.cases) for m in self.models)
        probed = [self._probed(i) for i in range(len(self.jobs))]
        with _progress(records + sum(map(len, probed)), self.bars) as tell:
            self._run(self._attacks(pilot, tell), tell)
            self._predict(pilot)
            here = isinstance(self.pool, ThisProcess)
            probes: list[tuple[tuple[Any, ...], int]] = [
                ((job.probe, cases, *([tell] if here else [])), 0 if here else len(cases))
                for job, cases in zip(self.jobs, probed, strict=True)
            ]
            self._run(probes + self._attacks(rest, tell), tell)
        self._probe_again()

    def _probe_again(self) -> None:
        """Probes that met a case which could not be used are made again without those; now all of them are known."""
        bad = {(model, case) for model, case, _ in read_problems(self.folder)}
        for i, model in enumerate(self.models):
            name = model.name
            if self.store.probe(name) is None:
                usable = [case for case in self._good(i) if (name, case) not in bad]
                if not usable:
                    continue
                ((_, found),) = self.pool.run(_call, [(self.jobs[i].probe, tuple(spread(usable, CASES)))])
                if reason := found.reason if isinstance(found, Killed) else found:
                    self.store.add_problem(name, "", f"the probes for the red flags could not be made: {reason}")
                    continue
            self.store.clear_problem(name, "")

    def _tasks(self) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
        """(model, case) of the pilot and of the rest; cases that the survey could not use are among the rest."""
        pilot, rest = [], []
        for i, model in enumerate(self.models):
            first = self._good(i)[: max(2, self.pool.workers)]
            pilot += [(i, case) for case in first]
            rest += [(i, case) for case in model.cases if case not in first]
        return pilot, rest

    def _attacks(
        self, tasks: Sequence[tuple[int, str]], tell: Callable[..., None]
    ) -> list[tuple[tuple[Any, ...], int]]:
        """(call, records to tell of when it is over); in this process a call tells of its records itself."""
        here = isinstance(self.pool, ThisProcess)
        return [
            ((self.jobs[i].attack, case, *([tell] if here else [])), 0 if here else _records_per_case(self.models[i]))
            for i, case in tasks
        ]

    def _run(self, calls: Sequence[tuple[tuple[Any, ...], int]], tell: Callable[..., None]) -> None:
        for number, result in self.pool.run(_call, [call for call, _ in calls]):
            (function, *arguments), records = calls[number]
            if isinstance(result, Killed) and function.__name__ == Job.attack.__name__:
                self.store.add_problem(self.models[function.__self__.number].name, arguments[0], result.reason)
            tell(records)

    @property
    def _one(self) -> str:
        """What ``--cases`` counts: a case of a classifier is a group of images."""
        return "image" if self.models[0].kind == "classification" else "case"

    def _counted(self, cases: Iterable[tuple[int, str]]) -> int:
        """How many of these (model, case) are, as ``--cases`` counts them."""
        sizes = [self.sizes[i][case] for i, case in cases]
        return sum(size.inputs for size in sizes) if self._one == "image" else len(sizes)

    def _good(self, i: int) -> list[str]:
        """Cases of a model that can be used."""
        return [case for case in self.models[i].cases if case in self.sizes[i]]

    def _probed(self, i: int) -> tuple[str, ...]:
        """Cases that the probes get, spread over the good ones."""
        return tuple(spread(self._good(i), CASES))

    def _predict(self, pilot: Sequence[tuple[int, str]]) -> None:
        """Seconds of the whole, from the pilot."""
        known = read_cost(self.folder).predicted
        if known is None:
            records = read_records(self.folder)
            total = 0.0
            for i, (model, sizes) in enumerate(zip(self.models, self.sizes, strict=True)):
                seconds = _seconds(records, model.name)
                whole = cost.predict(seconds, sizes)
                # The probes take what the cases take, in proportion to the passes that both make at most.
                attacks, probes = self._most(i, *self._timings[i])
                total += whole * (1 + probes.seconds / attacks.seconds)
            known = Predicted(total, self._counted(pilot))
            self.store.add_cost(Costs(predicted=known))
        done = self._spent().seconds
        left = max(known.seconds - done, 0.0) / self.pool.workers
        with tqdm.external_write_mode():  # beside the bar, not through it
            self.say(
                f"Predicted from {counted(known.cases, self._one)}: {duration(known.seconds)} of computing in all; "
                f"{duration(left)} left."
            )

    def _spent(self) -> Cost:
        """What all sessions spent, probes included."""
        probes = sum(probe.seconds for probe in read_probes(self.folder).values())
        return cost.measured(read_records(self.folder)) + Cost(0, 0, probes)

    def _measured(self) -> None:
        spent = self._spent()
        measured = Measured(spent.forward, spent.backward, spent.seconds, self.pool.workers)
        self.store.add_cost(Costs(measured=measured))
        predicted = read_cost(self.folder).predicted
        assert predicted is not None
        self.say(
            f"Measured: {spent.forward} forward and {spent.backward} backward passes of one input in the attacks, "
            f"{duration(spent.seconds)} of computing (predicted {duration(predicted.seconds)})."
        )


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _records_per_case(model: ModelEntry) -> int:
    return 1 + len(model.corruptions) + model.attacks_per_case


def _seconds(records: Sequence[Record], model: str) -> dict[str, float]:
    result: dict[str, float] = {}
    for record in records:
        if record.model == model:
            result[record.case] = result.get(record.case, 0.0) + record.seconds
    return result


@contextmanager
def _progress(records: int, shown: bool) -> Iterator[Callable[..., None]]:
    with tqdm(total=records, desc="attacking", unit="attack", disable=not shown) as bar:

        def tell(count: int = 1) -> None:
            bar.update(count)

        yield tell
