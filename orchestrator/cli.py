"""The `assay` command. Each command is a few lines around `orchestrator.sweep`.

Heavy imports stay inside the commands, so that `assay --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.summary import Summary
    from orchestrator.grid import Grid
    from orchestrator.launch import Plan
    from orchestrator.sweep import Sweep

app = typer.Typer(
    name="assay",
    help="Put saliency methods to the test: queue sweeps, run them here or on Slurm, rank methods.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
cache_app = typer.Typer(help="The results of stages on disk.", no_args_is_help=True)
db_app = typer.Typer(help="The result store.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.add_typer(db_app, name="db")

SweepName = Annotated[str | None, typer.Argument(help="Sweep; the latest one when left out.")]
SweepOption = Annotated[
    str | None, typer.Option("--sweep", "-s", help="Sweep; the latest one when left out.")
]
Words = Annotated[
    list[str] | None,
    typer.Option("--where", "-w", help="Filter: state:failed, id:3-17, key=value, key>2, or JSON."),
]
Database = Annotated[
    str | None,
    typer.Option(
        "--db", help="Result store: a path, sqlite:///…, or mongodb://user@host/database."
    ),
]
File = Annotated[Path, typer.Argument(help="Configuration file (YAML, SEML's language).")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a dotted key in every experiment of the file, whatever the file says of it.",
    ),
]
Executor = Annotated[
    str | None,
    typer.Option(help="Where workers run: local (the default), slurm (with --profile) or debug."),
]
Profile = Annotated[
    str | None,
    typer.Option(help="Slurm profile: cpu, gpu, …, or a YAML file; other options win over it."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Workers to start (default: 1).")]
Slots = Annotated[
    int | None, typer.Option(min=1, help="Experiments at a time per worker. [local: all cores]")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads per slot (default: 1, best for sweeps).")
]
Image = Annotated[
    str | None, typer.Option(help="Apptainer image (.sif) whose Python runs the workers.")
]
Partition = Annotated[str | None, typer.Option(help="Slurm partition.")]
Time = Annotated[str | None, typer.Option(help="Slurm time limit, such as 8:00:00.")]
Memory = Annotated[str | None, typer.Option("--mem", help="Slurm memory per worker, such as 8G.")]
Gres = Annotated[str | None, typer.Option(help="Slurm generic resources, such as gpu:1.")]
Setup = Annotated[
    list[str] | None, typer.Option(help="Shell line to run in the job before the worker starts.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit = Annotated[
    float | None, typer.Option(min=1, help="Seconds after which an experiment is ended as FAILED.")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder for figures and report.")
]


INTERRUPTED = 130


class UserError(Exception):
    """A mistake that the user can mend: shown as one line, without a traceback."""


def _user_errors() -> tuple[type[BaseException], ...]:
    """Errors whose text is meant for the user. Looked up only when something went wrong."""
    from analysis.frames import NoResults
    from orchestrator.grid import GridError
    from orchestrator.launch import LaunchError
    from orchestrator.selection import SelectionError
    from orchestrator.settings import SettingsError
    from orchestrator.store import StoreError
    from orchestrator.study import StudyError

    return (UserError, NoResults, GridError, LaunchError, SelectionError, SettingsError,
            StoreError, StudyError)  # fmt: skip


def main() -> None:
    """Entry point: user mistakes end with one line on standard error and exit code 1."""
    try:
        # An int where typer has an exit code of its own, such as 130 for Ctrl-C.
        code = app(standalone_mode=False) or 0
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = 0
    except Exception as error:
        code = _explain(error)
    if code == INTERRUPTED:
        _say_error("interrupted; nothing is lost, the same command goes on where it stopped")
    from orchestrator.store import leave

    leave(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Say what went wrong, and return the exit code; what is no user's mistake is raised.

    Newer typers bring a click of their own, so its exceptions are known by what they can do.
    """
    if show := getattr(error, "show", None):  # wrong usage: click's message, with a hint
        show()
        return int(getattr(error, "exit_code", 2))
    if type(error).__name__ == "Exit":
        return int(getattr(error, "exit_code", 0))
    if type(error).__name__ == "Abort":  # a question answered with no
        return 1
    if isinstance(error, _user_errors()):
        _say_error(str(error))
        return 1
    raise error


def _say_error(text: str) -> None:
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}assay: {text}{plain}", file=sys.stderr)


def _open(name: str | None, db: str | None) -> Sweep:
    from orchestrator import settings, sweep
    from orchestrator.store import open_store

    if name is None:
        store = open_store(settings.store_address(db).url)
        name = sweep.latest(store)
        if name is None:
            raise UserError(
                f"the store {store.url} has no sweep yet; start with "
                "`assay run configs/quickstart.yaml`"
            )
    return sweep.Sweep(name, db)


def _existing(name: str | None, db: str | None) -> Sweep:
    import difflib

    opened = _open(name, db)
    known = opened.store.collections()
    if opened.name not in known:
        near = difflib.get_close_matches(opened.name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"no sweep {opened.name!r} in {opened.store.url}{hint} (known: "
            f"{', '.join(known) or 'none'})"
        )
    return opened


def _select(words: list[str] | None) -> dict[str, Any] | None:
    from orchestrator import selection

    return selection.parse(words or [])


def _plan(executor: str | None, profile: str | None, **options: Any) -> Plan:
    """What to start: the profile's keys, and over them the options that were given."""
    from orchestrator.launch import Plan, minutes

    if executor not in (None, "local", "slurm", "debug"):
        raise UserError(f"--executor {executor!r}: one of local, slurm, debug")
    executor = executor or ("slurm" if profile else "local")
    given = {key: value for key, value in options.items() if value not in (None, [])}
    if "time" in given:
        given["time"] = minutes(given["time"])
    if profile is not None:
        if executor != "slurm":
            raise UserError("--profile is for --executor slurm")
        from orchestrator import profiles

        given = {**profiles.read(profile).given(), **given}
    ours = ("workers", "slots", "threads", "setup", "image", "max_workers", "time_limit")
    plan: dict[str, Any] = {key: given.pop(key) for key in ours if key in given}
    if "setup" in plan:
        plan["setup"] = tuple(plan["setup"])
    if "additional" in given:
        given["additional_parameters"] = given.pop("additional")
    if given and executor != "slurm":
        raise UserError(f"--{next(iter(given))} is for --executor slurm")
    return Plan(executor, slurm=given, **plan)  # type: ignore[arg-type]


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


# ---- the main path -----------------------------------------------------------------------------


@app.command()
def run(
    file: File,
    settings: Settings = None,
    where: Words = None,
    sweep: SweepOption = None,
    executor: Executor = None,
    profile: Profile = None,
    workers: Workers = None,
    slots: Slots = None,
    threads: Threads = None,
    partition: Partition = None,
    time: Time = None,
    mem: Memory = None,
    gres: Gres = None,
    setup: Setup = None,
    image: Image = None,
    time_limit: Limit = None,
    output: Output = None,
    report_: Annotated[
        bool, typer.Option("--report/--no-report", help="Write figures and report at the end.")
    ] = True,
    db: Database = None,
) -> None:
    """Add a file's experiments, run what is not done, show the ranked table, write the report.

    With --where, all are added, but only those that match are run and shown.
    """
    import dataclasses

    from orchestrator import grid
    from orchestrator.sweep import Sweep, name_for

    console = _console()
    plan = _plan(
        executor, profile, workers=workers, slots=slots, threads=threads, partition=partition,
        time=time, mem=mem, gres=gres, setup=setup, image=image, time_limit=time_limit,
    )  # fmt: skip
    chosen = _select(where)
    expanded = grid.read(file, grid.parse_settings(settings or []))
    opened = Sweep(sweep or name_for(file), db)
    added = opened.add(expanded)
    _report_added(console, opened, added)
    selection = added.selection
    if chosen is not None:
        ids = opened.ids({"$and": [selection, chosen]})
        if not ids:
            raise UserError(f"none of the {len(added.ids)} experiments of {file} matches --where")
        console.print(f"--where selects {len(ids)} of them")
        selection = {"_id": {"$in": ids}}
        plan = dataclasses.replace(plan, only=tuple(ids))
    status = opened.run(plan, selection)
    _finish(console, opened, selection, status, output, report_)


def _report_added(console: Any, opened: Sweep, added: Any) -> None:
    for warning in added.grid.warnings:
        console.print(f"[yellow]{warning}[/]")
    known = len(added.ids) - len(added.new)
    text = f"{len(added.ids)} experiments in sweep [bold]{opened.name}[/]"
    if known:
        text += f", {known} of them known already"
    console.print(f"{text}  [dim]{opened.store.url} ({opened.address.source})[/]", soft_wrap=True)


def _finish(
    console: Any,
    opened: Sweep,
    selection: dict[str, Any],
    status: Any,
    output: Path | None,
    with_report: bool,
) -> None:
    """The end of `assay run`: table, figures, report, and what to type next."""
    from analysis import frames
    from orchestrator import monitor

    console.print(monitor.table(status))
    with suppress(frames.NoResults):  # a script without score tables, or nothing finished
        found = _summary(opened, selection)
        _print_ranking(console, found)
        if with_report:
            with console.status("writing figures and report"):
                page = _write_report(opened, found, status, output)
            console.print(f"\nreport   [link={page.as_uri()}]{page}[/]", soft_wrap=True)
            for figure in sorted(page.parent.glob("*.png")):
                console.print(f"figure   {figure}", soft_wrap=True)
    console.print("\n[bold]next[/]")
    for command, meaning in _next_steps(opened, status):
        console.print(f"  {command:<52} [dim]{meaning}[/]", soft_wrap=True)
    if not status.finished or status.of("FAILED", "KILLED"):
        raise typer.Exit(1)


def _own_name() -> str:
    """How the user can call this command: `assay`, or by its path where that is not found."""
    import shutil

    here = Path(sys.argv[0])
    if shutil.which("assay") or here.name != "assay":
        return "assay"
    return str(here)


def _next_steps(opened: Sweep, status: Any) -> list[tuple[str, str]]:
    name, assay = opened.name, _own_name()
    steps = []
    if status.errors:
        _, _, example = status.errors[0]
        steps.append((f"{assay} logs {example} --sweep {name}", "why it failed"))
        steps.append((f"{assay} retry {name}", "put what failed back into the queue"))
    steps += [
        (f"{assay} results {name} --csv scores.csv", "every number with all its coordinates"),
        (f"{assay} report {name}", "all figures of the study"),
        (f"{assay} methods", "more methods to put into the YAML file"),
    ]
    return steps[:3]


def _summary(opened: Sweep, selection: dict[str, Any] | None) -> Summary:
    """What table, figures and report show, computed once."""
    from analysis import summary

    return summary.of(opened.scores(selection, samples=True))


def _print_ranking(console: Any, found: Summary) -> None:
    from analysis import tables

    console.print()
    console.print(tables.render(found, width=console.width))


def _write_report(opened: Sweep, found: Summary, status: Any, output: Path | None) -> Path:
    from analysis import figures, report
    from experiments import scoring
    from orchestrator.provenance import provenance

    folder = (output or Path("assay-report") / opened.name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    figures.save(
        {"ranking": figures.ranking(found), "scores": figures.scores_heatmap(found)}, folder
    )
    return report.write(
        found,
        folder / "report.html",
        title=opened.name,
        provenance=provenance(opened, status),
        statuses=status.counts,
        next_steps=[f"`{command}`: {meaning}" for command, meaning in _next_steps(opened, status)],
        meanings={name: score.summary for name, score in scoring.scores().items()},
    )


@app.command()
def add(
    file: File,
    settings: Settings = None,
    sweep: SweepOption = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be added.")] = False,
    db: Database = None,
) -> None:
    """Add a file's experiments to a sweep, without running them."""
    from orchestrator import grid
    from orchestrator.sweep import Sweep, name_for

    console = _console()
    expanded = grid.read(file, grid.parse_settings(settings or []))
    name = sweep or name_for(file)
    if dry_run:
        for warning in expanded.warnings:
            console.print(f"[yellow]{warning}[/]")
        console.print(f"{len(expanded.documents)} experiments for sweep [bold]{name}[/]")
        _report_cost(console, expanded)
        return
    opened = Sweep(name, db)
    _report_added(console, opened, opened.add(expanded))
    console.print(f"[dim]start them with[/] assay start {name}")


def _report_cost(console: Console, expanded: Grid) -> None:
    """The unique stages of a grid, what is there already, and the rest by past durations."""
    from rich.table import Table

    from orchestrator.estimate import estimate
    from orchestrator.monitor import duration

    plan = estimate(expanded, _artifacts())
    if plan is None or not plan.stages:
        console.print("[dim]no estimate: only studies of Assay say which stages they need[/]")
        return
    table = Table(box=None, header_style="bold")
    table.add_column("stage")
    for title in ("unique", "there", "to compute", "each", "in all"):
        table.add_column(title, justify="right")
    for cost in plan.stages:
        each = "unknown" if cost.seconds is None else duration(cost.seconds)
        in_all = "unknown" if cost.remaining is None else duration(cost.remaining)
        missing = cost.unique - cost.found
        table.add_row(
            cost.stage, f"{cost.unique:,}", f"{cost.found:,}", f"{missing:,}",
            each if missing else "", in_all,
        )  # fmt: skip
    console.print(table)
    unique = sum(cost.unique for cost in plan.stages)
    console.print(f"{plan.asked:,} results asked for, {unique:,} of them different", end="")
    if plan.remaining is None:
        console.print("; no estimate of time before each stage has run once")
    else:
        console.print(f"; about [bold]{duration(plan.remaining)}[/] of one slot, by past runs")
    if not plan.complete:
        console.print("[yellow]some experiments could not be planned; there may be more[/]")


@app.command()
def start(
    sweep: SweepName = None,
    executor: Executor = None,
    profile: Profile = None,
    workers: Workers = None,
    slots: Slots = None,
    threads: Threads = None,
    partition: Partition = None,
    time: Time = None,
    mem: Memory = None,
    gres: Gres = None,
    setup: Setup = None,
    image: Image = None,
    time_limit: Limit = None,
    max_workers: Annotated[
        int | None, typer.Option(min=1, help="Never more live workers than this for the sweep.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Only show what would be started, down to the job script.")
    ] = False,
    where: Words = None,
    db: Database = None,
) -> None:
    """Start workers for what is waiting in a sweep, and return at once."""
    plan = _plan(
        executor, profile, workers=workers, slots=slots, threads=threads, partition=partition,
        time=time, mem=mem, gres=gres, setup=setup, image=image,
        time_limit=time_limit, max_workers=max_workers,
    )  # fmt: skip
    opened = _existing(sweep, db)
    from orchestrator import launch

    if dry_run:
        counts = opened.queue.counts(_select(where))
        waiting = counts.get("STAGED", 0) + counts.get("PENDING", 0)
        typer.echo(launch.describe(opened.store, opened.name, opened.address.url, plan))
        typer.echo(f"# nothing was started; {waiting} experiments wait")
        return
    # In the debugger an experiment runs in this process, and prints.
    own = nullcontext() if plan.executor == "debug" else launch.without_our_output()
    with own:
        launched = opened.start(plan, _select(where))
    waiting = opened.status().of("PENDING")
    console = _console()
    if launched.note:
        console.print(f"[yellow]{launched.note}[/]", soft_wrap=True)
    if launched.ids:
        first, last = launched.ids[0], launched.ids[-1]
        jobs = ", ".join(launched.ids) if len(launched.ids) <= 8 else f"{first} … {last}"
        console.print(f"{len(launched.ids)} workers for {waiting} experiments ({jobs})")
        console.print(f"[dim]follow with[/] assay status {opened.name} --watch")


@app.command()
def status(
    sweep: SweepName = None,
    watch: Annotated[bool, typer.Option(help="Live, until everything is finished.")] = False,
    where: Words = None,
    db: Database = None,
) -> None:
    """How far a sweep is, and what went wrong."""
    import dataclasses

    from orchestrator import monitor, sources

    opened = _existing(sweep, db)
    selection = _select(where)
    if watch:
        monitor.watch(lambda: opened.status(selection), until=lambda now: now.finished, interval=2)
    found = dataclasses.replace(opened.status(selection), moved_on=sources.moved_on(opened.queue))
    _console().print(monitor.table(found))


@app.command()
def results(
    sweep: SweepName = None,
    csv: Annotated[Path | None, typer.Option(help="Write every row to this CSV file.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write every row to this file.")] = None,
    where: Words = None,
    db: Database = None,
) -> None:
    """The ranked table of methods; with --csv or --parquet, every number."""
    opened = _existing(sweep, db)
    console = _console()
    if csv is None and parquet is None:
        _print_ranking(console, _summary(opened, _select(where)))
        return
    table = opened.scores(_select(where), samples=True)
    for path, write in ((csv, _to_csv), (parquet, _to_parquet)):
        if path is not None:
            try:
                write(table, path)
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror or error}") from error
            console.print(f"{len(table)} rows in {path}")


def _to_csv(table: Any, path: Path) -> None:
    table.drop(columns="samples").to_csv(path, index=False)


def _to_parquet(table: Any, path: Path) -> None:
    table.to_parquet(path, index=False)


@app.command()
def report(
    sweep: SweepName = None, output: Output = None, where: Words = None, db: Database = None
) -> None:
    """Write figures and one self-contained HTML page."""
    opened = _existing(sweep, db)
    selection = _select(where)
    found = _summary(opened, selection)
    page = _write_report(opened, found, opened.status(selection), output)
    _write_study_figures(opened, selection, page.parent)
    _console().print(page)


def _write_study_figures(opened: Sweep, selection: dict[str, Any] | None, folder: Path) -> None:
    """The figures of the sweep's studies, one at a time: there are dozens."""
    from analysis import andor, figures, frames, smerf

    modules: dict[str, Any] = {"andor": andor, "smerf": smerf}
    rows = opened.scores(selection, samples=True)
    console = _console()
    for module in (modules[study] for study in modules if (rows["study"] == study).any()):
        given = {}
        if kept := getattr(module, "FILE", None):  # what runs keep for figures beside their rows
            given["files"] = frames.files(opened.name, kept, selection, store=opened.store)
        with console.status("figures of the study"):
            for name, draw in module.drawings(rows, **given).items():
                figures.save({name: draw()}, folder)
        for line in module.missing(rows, **given):
            console.print(f"[dim]{line}[/]")


@app.command()
def cancel(sweep: SweepName = None, where: Words = None, db: Database = None) -> None:
    """Stop what is waiting or running; finished results stay."""
    opened = _existing(sweep, db)
    count = opened.cancel(_select(where))
    _console().print(f"{count} experiments cancelled; workers stop within seconds")


@app.command()
def retry(sweep: SweepName = None, where: Words = None, db: Database = None) -> None:
    """Put failed, killed and interrupted experiments back into the queue."""
    opened = _existing(sweep, db)
    count = opened.retry(_select(where))
    console = _console()
    console.print(f"{count} experiments are waiting again")
    if count:
        console.print(f"[dim]run them with[/] assay start {opened.name}")


@app.command()
def reset(
    sweep: SweepName = None, where: Words = None, yes: Yes = False, db: Database = None
) -> None:
    """Forget the results of finished experiments; they are STAGED again."""
    opened = _existing(sweep, db)
    selection = _select(where)
    count = opened.status(selection).of(*queue_states("FINISHED"))
    _confirm(f"Forget the results of {count} experiments of {opened.name}?", count, yes)
    _console().print(f"{opened.reset(selection)} experiments are staged again")


@app.command()
def delete(
    sweep: SweepName = None, where: Words = None, yes: Yes = False, db: Database = None
) -> None:
    """Remove experiments and their results; running ones stay."""
    opened = _existing(sweep, db)
    selection = _select(where)
    status = opened.status(selection)
    count = status.total - status.of("RUNNING")
    _confirm(f"Delete {count} experiments of {opened.name}, with their results?", count, yes)
    _console().print(f"{opened.delete(selection)} experiments deleted")


def queue_states(group: str) -> tuple[str, ...]:
    """A group of states of the queue, by name."""
    from orchestrator import queue

    return tuple(getattr(queue, group))


def _confirm(question: str, count: int, yes: bool) -> None:
    if count and not yes:
        typer.confirm(question, abort=True)


@app.command()
def top(
    sweep: SweepName = None,
    once: Annotated[bool, typer.Option(help="Print once instead of live.")] = False,
    db: Database = None,
) -> None:
    """Workers, slots, and what each experiment takes of CPU, memory and GPU."""
    from rich.live import Live

    from orchestrator import monitor

    opened = _existing(sweep, db)
    console = _console()
    if once or not console.is_terminal:
        console.print(monitor.load(opened.queue))
        return
    import time

    with Live(monitor.load(opened.queue), console=console) as live:
        while True:
            time.sleep(2)
            live.update(monitor.load(opened.queue))


@app.command()
def logs(
    number: Annotated[int, typer.Argument(metavar="ID", help="Experiment.")],
    sweep: SweepOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    db: Database = None,
) -> None:
    """What an experiment printed."""
    opened = _existing(sweep, db)
    try:
        if follow:
            _follow(opened, number)
        else:
            typer.echo(opened.logs(number))
    except KeyError as error:
        raise UserError(str(error.args[0])) from error


def _follow(opened: Sweep, number: int) -> None:
    import time

    shown = 0
    while True:
        document = opened.store.find_one(opened.name, {"_id": number})
        if document is None or (path := opened.live_output(document)) is None:
            break
        text = path.read_text(errors="replace")
        sys.stdout.write(text[shown:])
        sys.stdout.flush()
        shown = len(text)
        time.sleep(0.5)
    text = opened.logs(number)
    typer.echo(text[shown:] if shown else text)


# ---- what there is -----------------------------------------------------------------------------


WIDE = 180  # columns of a terminal that has room for a sentence on each method or score
Family = Annotated[str | None, typer.Option(help="Only those of one family.")]


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this one.")] = None,
    family: Family = None,
) -> None:
    """Every attribution method; with a name, its formula, parameters and source."""
    from orchestrator import catalogue

    if name is not None:
        _page(*_known(catalogue.method_page, name))
        return
    _listing(
        ("family", "method", "library", "cost", "applies to", "", "source", "what it does"),
        _known(catalogue.methods, family),
        "F: forward pass, FB: forward and backward. [bold]assay methods NAME[/] explains one. In a "
        "YAML file: [bold]methods: \\[name, {name: other, steps: 3}, my_module:function][/]",
    )


@app.command()
def scores(
    name: Annotated[str | None, typer.Argument(help="Explain this one.")] = None,
    family: Family = None,
) -> None:
    """Every score; with a name, its formula, parameters and source."""
    from orchestrator import catalogue

    if name is not None:
        _page(*_known(catalogue.score_page, name))
        return
    _listing(
        ("family", "score", "better", "range", "cost", "needs", "source", "what it says"),
        _known(catalogue.scores, family),
        "[bold]assay scores NAME[/] explains one. "
        "In a YAML file: [bold]scores: \\[name, {name: other, ties: half}, my_module:MyScore][/]",
    )


def _known(look: Callable[[Any], Any], name: str | None) -> Any:
    """What a look by name finds; a name that nobody knows is the user's mistake."""
    try:
        return look(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def _page(
    name: str, text: str, facts: list[tuple[str, str]], parameters: list[tuple[str, str]], file: str
) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = _console()
    console.print(f"[bold]{escape(name)}[/]\n{escape(text)}\n")
    for title, rows in ((None, facts), ("parameters", parameters)):
        if rows:
            table = Table(box=None, show_header=False, title=title, title_justify="left")
            table.add_column(style="dim" if title is None else "bold", no_wrap=True)
            table.add_column()
            for left, right in rows:
                table.add_row(escape(left), escape(right))
            console.print(table)
    console.print("\n[dim]in a YAML file, with the defaults written out:[/]")
    console.print(escape(file), soft_wrap=True)


@app.command()
def studies() -> None:
    """Every study, and where its configurations are."""
    from orchestrator import study

    rows = []
    for name in study.names():
        facts = study.describe(study.load(f"experiments/studies/{name}.py", "."))
        rows.append((name, facts["version"], facts["summary"]))
    _listing(("study", "version", "question"), rows, "")


def _listing(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], footer: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = _console()
    if not console.is_terminal:  # a file or a pipe has room
        console.width = max(console.width, WIDE)
    # The last column, a sentence each, needs room; without it the page of one has it.
    shown = len(header) if console.width >= WIDE or len(header) < 6 else len(header) - 1
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for position, title in enumerate(header[:shown]):
        table.add_column(title, overflow="fold", no_wrap=position < 2)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row[:shown]))
    console.print(table)
    if footer:
        console.print(f"\n{footer}")


@app.command()
def doctor(db: Database = None) -> None:
    """What works here, what is missing, and how to get it."""
    from orchestrator import doctor as checks

    console = _console()
    worst = 0
    for check in checks.checks(db):
        mark = {"ok": "[green]ok[/]   ", "note": "[yellow]note[/] ", "bad": "[red]bad[/]  "}
        console.print(f"{mark[check.verdict]} {check.name:<10} {check.found}", soft_wrap=True)
        if check.remedy:
            console.print(f"                 [dim]→ {check.remedy}[/]", soft_wrap=True)
        worst = max(worst, check.verdict == "bad")
    if worst:
        raise typer.Exit(1)


# ---- the cache ---------------------------------------------------------------------------------


def _artifacts() -> Any:
    from experiments.artifacts import ArtifactStore
    from orchestrator import settings

    return ArtifactStore(settings.artifacts())


@cache_app.command("list")
def cache_list(
    stage: Annotated[str | None, typer.Argument(help="Only this stage.")] = None,
) -> None:
    """What is kept, by stage."""
    from rich.table import Table

    totals: dict[str, list[float]] = {}
    store = _artifacts()
    for entry in store.entries(stage):
        row = totals.setdefault(entry.stage, [0, 0, 0.0])
        row[0] += 1
        row[1] += entry.bytes
        row[2] += entry.header.get("seconds", 0.0)
    table = Table(box=None, header_style="bold")
    for title in ("stage", "artifacts", "size", "time to compute"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    from orchestrator.monitor import duration

    for name, (count, size, seconds) in sorted(totals.items()):
        table.add_row(name, f"{count:.0f}", f"{size / 1e6:.1f} MB", duration(seconds))
    console = _console()
    console.print(table)
    console.print(f"[dim]{store.root}[/]", soft_wrap=True)


@cache_app.command("verify")
def cache_verify(
    delete: Annotated[bool, typer.Option(help="Delete what is broken.")] = False,
) -> None:
    """Read everything and compare checksums."""
    console = _console()
    good = bad = 0
    for entry, problem in _artifacts().verify():
        if problem is None:
            good += 1
            continue
        bad += 1
        console.print(f"[red]{problem}[/]", soft_wrap=True)
        if delete:
            entry.path.unlink(missing_ok=True)
    console.print(f"{good} artifacts are sound, {bad} are broken")
    if bad and not delete:
        console.print("[dim]they are computed again when needed; --delete frees the space[/]")
        raise typer.Exit(1)


@cache_app.command("prune")
def cache_prune(
    stage: Annotated[str | None, typer.Option(help="Only this stage.")] = None,
    days: Annotated[float, typer.Option(min=0, help="Older than so many days.")] = 30.0,
    yes: Yes = False,
) -> None:
    """Delete artifacts; what is needed again is computed again."""
    import time

    store = _artifacts()
    limit = time.time() - days * 86400
    doomed = [entry for entry in store.entries(stage) if entry.modified <= limit]
    leftovers = store.leftovers()
    size = sum(entry.bytes for entry in doomed) / 1e6
    console = _console()
    console.print(f"{len(doomed)} artifacts, {size:.1f} MB; {len(leftovers)} temporary files")
    if not doomed and not leftovers:
        return
    if not yes:
        typer.confirm("Delete them?", abort=True)
    for path in [*(entry.path for entry in doomed), *leftovers]:
        path.unlink(missing_ok=True)
    console.print("deleted")


# ---- the store ---------------------------------------------------------------------------------


def _store(db: str | None) -> Any:
    from orchestrator import settings
    from orchestrator.store import open_store

    return open_store(settings.store_address(db).url)


@db_app.command("status")
def db_status(db: Database = None) -> None:
    """Which store is in use, and what is in it."""
    from rich.table import Table

    from orchestrator import settings
    from orchestrator.queue import Queue

    address = settings.store_address(db)
    store = _store(db)
    console = _console()
    console.print(f"{store.url}  [dim]({address.source})[/]", soft_wrap=True)
    for key, value in store.describe().items():
        console.print(f"  {key}: {value}", soft_wrap=True)
    table = Table(box=None, header_style="bold")
    for title in ("sweep", "experiments", "states"):
        table.add_column(title)
    for name in store.collections():
        counts = Queue(store, name).counts()
        if counts:
            states = ", ".join(f"{count} {state}" for state, count in counts.items())
            table.add_row(name, str(sum(counts.values())), states)
    console.print(table)


Target = Annotated[str, typer.Argument(help="The other store: mongodb://… or a path.")]
Force = Annotated[bool, typer.Option(help="Overwrite what differs.")]


@db_app.command("push")
def db_push(
    target: Target, sweep: SweepOption = None, force: Force = False, db: Database = None
) -> None:
    """Copy a sweep, documents and results, from this store to another."""
    from orchestrator.store import open_store, transfer

    opened = _existing(sweep, db)
    _report_copied(transfer.push(opened.store, open_store(target), opened.name, force=force))


@db_app.command("pull")
def db_pull(
    target: Target, sweep: SweepOption = None, force: Force = False, db: Database = None
) -> None:
    """Copy a sweep from another store to this one."""
    from orchestrator.store import transfer

    opened = _existing(sweep, target)
    _report_copied(transfer.push(opened.store, _store(db), opened.name, force=force))


def _report_copied(done: Any) -> None:
    there = done.documents_there + done.blobs_there
    known = f"; {there} were there already" if there else ""
    _console().print(f"{done.documents} documents and {done.blobs} files copied{known}")


@db_app.command("adopt")
def db_adopt(db: Database = None) -> None:
    """Take over an SQLite file that was moved here from another host."""
    from orchestrator import settings
    from orchestrator.store import open_store

    store = open_store(settings.store_address(db).url, adopt=True)
    _console().print(f"{store.url} belongs to this host now")


@db_app.command("backup")
def db_backup(path: Path, db: Database = None) -> None:
    """Write the whole store to a file."""
    _store(db).backup(path)
    _console().print(f"backup in {path}")


@db_app.command("restore")
def db_restore(path: Path, force: Force = False, db: Database = None) -> None:
    """Read a backup into an empty store."""
    _store(db).restore(path, force=force)
    _console().print(f"restored from {path}")


@db_app.command("replay")
def db_replay(sweep: SweepOption = None, db: Database = None) -> None:
    """Ship results that dead workers of this machine left on its disk."""
    found = _existing(sweep, db).replay()
    taken = sum(fresh for _, fresh in found)
    _console().print(f"{taken} results shipped, {len(found) - taken} came too late")


@db_app.command("check")
def db_check(db: Database = None) -> None:
    """Look for damage."""
    problems = _store(db).check()
    console = _console()
    for problem in problems:
        console.print(f"[red]{problem}[/]", soft_wrap=True)
    console.print(f"{len(problems)} problems")
    if problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
