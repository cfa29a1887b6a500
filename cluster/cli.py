"""The program ``stillhouse``: parses the command line, runs phases, and turns every mistake into one sentence.

Heavy packages are imported by what needs them: ``--help`` answers at once.
"""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter

from cluster.audit_cli import audit
from cluster.gateway_cli import gateway
from cluster.jobs_cli import DASHBOARD, jobs
from cluster.signals import interrupt_on_sigterm
from configs.errors import BudgetReached, UserError

if TYPE_CHECKING:
    from cluster.context import RunContext
    from cluster.run import Phase

EXIT_USER_ERROR = 2
EXIT_FAULT = 1
EXIT_BUDGET = 3
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141  # what a shell says of a program that SIGPIPE ended

Recipe = Annotated[Path, Parameter(help="Recipe file, such as configs/recipes/quickstart.yaml.")]
Overrides = Annotated[str, Parameter(help="Overrides as section.key=value, such as training.max_steps=100.")]
Debug = Annotated[bool, Parameter(negative="", help="Show tracebacks.")]

app = App(
    name="stillhouse",
    help="Distil a large teacher LLM into a small student: one recipe, one command, one Ray cluster.",
    version_flags=["--version"],
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # run_command says what an interrupted run means
)

terms = App(name="terms", help="Licences and terms: what the policy says, and what it means for a recipe.")
app.command(terms)
app.command(audit)
app.command(gateway)
app.command(jobs)


@app.command
def run(recipe: Recipe, *overrides: Overrides, debug: Debug = False) -> int:
    """Do every phase: plan, generate, seal, hand over, train, evaluate, export, report.

    Run the same command again to resume: finished phases are recognised, unfinished ones go on.

    Example: `stillhouse run configs/recipes/quickstart.yaml training.max_steps=300`
    """
    from cluster.run import RUN

    return _phases(recipe, overrides, RUN, report=True)


@app.command
def plan(recipe: Recipe, *overrides: Overrides, calibrate: bool = False, debug: Debug = False) -> int:
    """Check a recipe and say what a run of it would do; starts and writes nothing.

    Example: `stillhouse plan configs/recipes/qwen3-32b-to-1.7b.yaml`

    Parameters
    ----------
    calibrate
        First do the run in miniature, on the real engine and trainer, and go by what it took. The result is kept beside
        the run directories, for this and later plans and runs.
    """
    from cluster.plan_report import print_plan
    from configs.load import load_run_config

    config = load_run_config(recipe, overrides)
    if calibrate:
        from cluster.calibrate import calibrate as measure

        measure(config)
    print_plan(config)
    return 0


@app.command
def generate(recipe: Recipe, *overrides: Overrides, debug: Debug = False) -> int:
    """Let the teacher answer the prompts, seal the data set, and free the teacher's resources.

    Example: `stillhouse generate configs/recipes/quickstart.yaml`
    """
    from cluster.run import GENERATE

    return _phases(recipe, overrides, GENERATE)


@app.command
def train(recipe: Recipe, *overrides: Overrides, debug: Debug = False) -> int:
    """Train the student on the sealed data set.

    Example: `stillhouse train configs/recipes/quickstart.yaml training.num_workers=1`
    """
    from cluster.run import TRAIN

    return _phases(recipe, overrides, TRAIN)


@app.command
def evaluate(recipe: Recipe, *overrides: Overrides, debug: Debug = False) -> int:
    """Measure teacher, student before and student after on the held-out problems.

    Example: `stillhouse evaluate configs/recipes/quickstart.yaml`
    """
    from cluster.run import EVALUATE

    return _phases(recipe, overrides, EVALUATE)


@app.command
def export(recipe: Recipe, *overrides: Overrides, debug: Debug = False) -> int:
    """Write the trained student as a Hugging Face directory, `<run>/student/hf`.

    Example: `stillhouse export configs/recipes/quickstart.yaml`
    """
    from cluster.run import EXPORT

    return _phases(recipe, overrides, EXPORT)


@app.command
def serve(recipe: Recipe, *overrides: Overrides, port: int = 8000, debug: Debug = False) -> int:
    """Keep the teacher up behind an OpenAI-compatible endpoint on loopback, until Ctrl-C.

    Example: `stillhouse serve configs/recipes/quickstart.yaml --port 8001`
    """
    from cluster.serve import serve_teacher

    with _context(recipe, overrides) as ctx:
        serve_teacher(ctx, port)
    return 0


@app.command
def report(recipe: Recipe, *overrides: Overrides, debug: Debug = False) -> int:
    """Write `report.json` and `report.html` of a finished run again, and print the summary.

    Example: `stillhouse report configs/recipes/quickstart.yaml`
    """
    return _phases(recipe, overrides, (), report=True)


@app.command
def status(recipe: Recipe, *overrides: Overrides, watch: bool = False, debug: Debug = False) -> int:
    """Show phase, rows, tokens/s, loss and ETA of a running or past run, from another terminal.

    Example: `stillhouse status configs/recipes/quickstart.yaml --watch`
    """
    from cluster.status import show_status
    from configs.load import load_run_config

    show_status(load_run_config(recipe, overrides), watch=watch)
    return 0


@app.command
def doctor(run_dir: Annotated[Path | None, Parameter(help="Check that a run could write here.")] = None) -> int:
    """Check versions, imports, ports, memory, GPUs and write access, and say how to mend each.

    Example: `stillhouse doctor`
    """
    from cluster.doctor import main as check

    return check(None if run_dir is None else str(run_dir))


@app.command
def verify(
    directory: Annotated[str, Parameter(help="Exported student (<run>/student/hf) or a run's directory.")],
    *,
    sha256: Annotated[str | None, Parameter(help="Digest of MANIFEST.json, as its maker names it.")] = None,
    public_key: Annotated[Path | None, Parameter(help="PEM file with the key that must have signed it.")] = None,
    debug: Debug = False,
) -> int:
    """Check a released student, or a run's sealed data and its student, file by file against its manifest; offline.

    Says the first file that is missing, was added or differs, and between which bytes. Exits with 1 then.

    Example: `stillhouse verify runs/quickstart/student/hf`
    """
    from cluster.release_manifest import find_fault, manifest_digest
    from cluster.signature import find_signature_fault, signing_key

    fault, digest = find_fault(directory), manifest_digest(directory)
    if fault is None and sha256 is not None and sha256 != digest:
        fault = f"MANIFEST.json has sha256 {digest}, and not {sha256}"
    if fault is None and public_key is not None:
        fault = find_signature_fault(directory, public_key)
    if fault is not None:
        print(f"error: {directory}: {fault}", file=sys.stderr)
        return EXIT_FAULT
    told = [f"MANIFEST.json with sha256 {digest}"] if digest else []
    if public_key is not None:
        told.append(f"signed by the key {signing_key(directory)}")
    elif digest and (key := signing_key(directory)):
        told.append(f"its signature by {key} not checked (--public-key)")
    print(f"{directory} is as its manifest says" + (f": {', '.join(told)}" if told else ""))
    return 0


@app.command
def sign(
    directory: Annotated[str, Parameter(help="Exported student (<run>/student/hf) or a run's directory.")],
    *,
    key: Annotated[str, Parameter(help="PEM file with an Ed25519 private key, or env:NAME of a variable that has it.")],
    debug: Debug = False,
) -> int:
    """Sign a released student: `MANIFEST.json.sig`, which `stillhouse verify --public-key` checks. Stores no key.

    Example: `stillhouse sign runs/quickstart/student/hf --key signing-key.pem`
    """
    from cluster.signature import sign_release

    print(f"{directory} is signed by the key {sign_release(directory, key)}")
    return 0


@app.command
def submit(
    recipe: Recipe,
    *overrides: Overrides,
    address: str = DASHBOARD,
    command: str = "run",
    follow: bool = True,
    debug: Debug = False,
) -> int:
    """Run a command as a Ray job on a cluster; follows its log and passes its exit code on.

    `stillhouse jobs` lists, stops and resumes them. A job that is under way in the same run directory is in the way.

    Example: `stillhouse submit configs/recipes/quickstart.yaml --address http://127.0.0.1:8265`

    Parameters
    ----------
    address
        The cluster's dashboard address.
    command
        The stillhouse command to run there.
    follow
        Follow the job's log until it ends; with --no-follow only print its id.
    """
    from cluster.submit import submit_job
    from configs.load import load_run_config

    config = load_run_config(recipe, overrides)  # a mistake is told here, before anything travels
    return submit_job(config, command, recipe, overrides, address=address, follow=follow)


@terms.command(name="list")
def list_terms(*, debug: Debug = False) -> int:
    """List the policy: every licence and service, what it says of training on outputs, how and when it was checked.

    Example: `stillhouse terms list`
    """
    from cluster.terms_report import print_policy

    print_policy()
    return 0


@terms.command
def check(
    name: Annotated[str, Parameter(help="Policy id, SPDX id or expression, Hub tag, provider, or OWNER/NAME.")],
    *,
    debug: Debug = False,
) -> int:
    """Show what the policy has by a name: rule, clause, duties, conditions, and where the text is.

    Example: `stillhouse terms check llama3.1`
    """
    from cluster.terms_report import print_entries

    print_entries(name)
    return 0


@terms.command
def explain(recipe: Recipe, *overrides: Overrides, debug: Debug = False) -> int:
    """Explain whether a recipe may be run: its sources, clauses and duties. Exits with 2 where it may not.

    Example: `stillhouse terms explain configs/recipes/quickstart.yaml terms.party.distribution=weights`
    """
    from cluster.terms_report import print_decision
    from configs.load import load_run_config

    return print_decision(load_run_config(recipe, overrides))


@terms.command
def trace(
    file: Annotated[str, Parameter(help="Parquet file of a run's completions, wherever it lies; any fsspec URI.")],
    *,
    debug: Debug = False,
) -> int:
    """Tell where a Parquet file came from, by its footer: run, teacher, licences, sampling, engine, decision.

    Example: `stillhouse terms trace shard-000000-5f0c….parquet`
    """
    from cluster.trace_report import print_origin

    print_origin(file)
    return 0


@terms.command
def lint(
    place: Annotated[str, Parameter(help="Run directory, Delta table, or Parquet or JSONL files; any fsspec URI.")],
    *,
    teacher: Annotated[
        tuple[str, ...], Parameter(help="Model that wrote the rows; unset takes their teacher_repo.")
    ] = (),
    column: Annotated[str | None, Parameter(help="Column with texts or chats; unset looks for the usual ones.")] = None,
    show: int = 20,
    debug: Debug = False,
) -> int:
    """Find rows that say they are another maker's model, such as "I am ChatGPT". Exits with 1 where there are any.

    Example: `stillhouse terms lint answers.jsonl --teacher Qwen/Qwen3-8B`

    Parameters
    ----------
    show
        How many rows are named, each with what it says.
    """
    from cluster.claims_report import print_claims

    return print_claims(place, teacher, column, show)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run one command line and return its exit status; prints one sentence for what a user can mend."""
    _check_root()
    interrupt_on_sigterm()
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # a reader who is gone shows here, and not when the interpreter ends
        return result if isinstance(result, int) else 0
    except CycloptsError as error:
        print(f"error: {_one_line(error)} (see stillhouse --help)", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _has_lost_its_reader():
            return EXIT_NO_READER
        if "--debug" in arguments:
            raise
        mistake = _find_user_error(error)
        print(f"error: {_one_line(mistake or error)}", file=sys.stderr)
        if mistake is None:
            print("this is a fault, not a mistake of yours; add --debug for the traceback", file=sys.stderr)
        if isinstance(mistake, BudgetReached):
            return EXIT_BUDGET
        return EXIT_USER_ERROR if mistake else EXIT_FAULT


def _has_lost_its_reader() -> bool:
    """Whether nobody reads our output any more, as after ``| head``; other pipes can break as well, and are a fault."""
    stdout = sys.stdout.fileno()
    looks = select.poll()
    looks.register(stdout, select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in looks.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)  # the interpreter flushes once more at its end
    return True


@contextmanager
def _context(recipe: Path, overrides: tuple[str, ...]) -> "Iterator[RunContext]":
    from cluster.context import RunContext
    from cluster.progress import Progress
    from cluster.run_dir import RunDir
    from configs.load import load_run_config

    config = load_run_config(recipe, overrides)
    run_dir = RunDir.of(config)
    run_dir.claim(config)
    with Progress(config.name, run_dir) as progress, RunContext(config, run_dir, progress) as ctx:
        yield ctx


def _phases(recipe: Path, overrides: tuple[str, ...], phases: "tuple[Phase, ...]", *, report: bool = False) -> int:
    with _context(recipe, overrides) as ctx:
        for phase in phases:
            phase(ctx)
        if report:
            from cluster.report import summary_lines, write_report

            lines = summary_lines(write_report(ctx))
            ctx.progress.say("\n".join([*lines, f"report    {ctx.run_dir.uri('report.html')}"]))
    return 0


def _find_user_error(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an error that may have travelled through Ray."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        cause = getattr(error, "cause", None)
        error = cause if isinstance(cause, BaseException) else error.__cause__
    return None


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A Ray error is a traceback in text; what went wrong is its last line.
    return lines[-1] if lines[0].startswith(("ray::", "\x1b[36mray::")) else " ".join(lines)


def _check_root() -> None:
    """Refuse to run with a foreign package of the same name: ``configs`` and ``training`` are common words."""
    import importlib.util

    root = Path(__file__).resolve().parent.parent
    for package in ("configs", "services", "training", "cluster"):
        spec = importlib.util.find_spec(package)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or root not in origin.parents:
            sys.exit(f"error: the package {package} resolves to {origin}, outside of {root}; remove it from PYTHONPATH")
