"""The command line: `python -m metamoe_backend [--workspace DIR] VERB … [--json]`, the pages' headless twin.

With --json the last line of standard output is one JSON object; logs and progress go to standard error. Exit status:
0 success, 2 a person's mistake (one sentence), 1 a bug (traceback).
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, get_args

from metamoe_backend.config import RoutingMode
from metamoe_backend.errors import MetaMoEError
from metamoe_backend.rows import RunState

Verb = Callable[[argparse.Namespace], dict[str, Any]]
VERB_GROUPS = (
    "sharing",
    "data",
    "skills",
    "experts",
    "selection",
    "data_selection",
    "results",
    "routing",
    "study",
    "jobs",
    "workspace",
)
"""Modules of `metamoe_backend.verbs`; a verb is the function run_NAME of one of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        result = find_verb(options.verb)(options)
    except MetaMoEError as error:
        print(f"metamoe: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("metamoe: stopped by the keyboard.", file=sys.stderr)
        return 130
    except Exception:  # noqa: BLE001 - the last line of defence: a bug is shown whole and gives exit status 1
        traceback.print_exc()
        return 1
    if options.json:
        print(json.dumps(result, ensure_ascii=False, default=str, allow_nan=False))
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command in one sentence."""

    def error(self, message: str) -> NoReturn:
        print(f"metamoe: {message.rstrip('.')}; see `{self.prog} --help`.", file=sys.stderr)
        raise SystemExit(2)


def find_verb(name: str) -> Verb:
    """The function behind a verb."""
    from importlib import import_module

    function = "run_" + name.replace("-", "_")
    modules = (import_module(f"metamoe_backend.verbs.{group}") for group in VERB_GROUPS)
    return next(getattr(module, function) for module in modules if hasattr(module, function))


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line."""
    parser = _Parser(
        prog="python -m metamoe_backend",
        description="Group questions by skill, train one LoRA expert per skill, route, see what was forgotten.",
    )
    parser.add_argument(
        "--workspace", help="folder of the workspace (default: METAMOE_WORKSPACE, else data/workspaces/default)"
    )
    parser.set_defaults(json=False)
    common = _Parser(add_help=False)
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="last line of output is one JSON object"
    )
    common.add_argument("--workspace", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text, parents=[common])

    _add_data_verbs(add)
    _add_skill_verbs(add)
    _add_expert_verbs(add)
    _add_result_verbs(add)
    _add_workspace_verbs(add)
    return parser


Add = Callable[[str, str], argparse.ArgumentParser]


def _add_by(parser: argparse.ArgumentParser, required: bool = False) -> None:
    default = os.environ.get("METAMOE_PERSON") or os.environ.get("USER") or "me"
    parser.add_argument("--by", required=required, default=default, metavar="PERSON", help="who does this")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting, e.g. --set optim.learning_rate=1e-3",
    )
    _add_by(parser)


def _add_on(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--on", metavar="PROFILE", help="start on Slurm, by WORKSPACE/profiles/PROFILE.toml")
    parser.add_argument(
        "--after", nargs="+", default=[], metavar="RUN",
        help="begin when these runs have finished; runs that make the experts or systems named here are waited for "
        "anyway",
    )  # fmt: skip


def _add_shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, metavar="N", help="cut it into N runs, which give the rows of one")
    _add_on(parser)


def _add_of(parser: argparse.ArgumentParser, encoder: bool = True, both: bool = True) -> None:
    choices = ["question", "meta-question", *(["both"] if both else [])]
    parser.add_argument("--of", choices=choices, default="question")
    parser.add_argument("--method", choices=["template", "llm"], help="whose meta-questions, with --of meta-question")
    if encoder:
        parser.add_argument(
            "--encoder", default="minilm", help="minilm (English), e5 (Chinese and English) or a hub id"
        )


def _add_data_verbs(add: Add) -> None:
    ingest = add("ingest", "Read questions from a file, a hub data set or a generator.")
    ingest.add_argument(
        "source", help="a .jsonl .json .csv .tsv .parquet file, hub:REPO[:CONFIG], humaneval: or reasoning_gym:NAME"
    )
    ingest.add_argument("--task", help="name of the task (default: from the source)")
    ingest.add_argument("--split", choices=["train", "validation", "test"], default="test")
    ingest.add_argument("--limit", type=int, help="at most so many questions")
    ingest.add_argument("--seed", type=int, default=0, help="seed of a generator")
    ingest.add_argument(
        "--map", nargs="+", default=[], metavar="FIELD=COLUMN", help="fields: prompt choices answer explanation split"
    )
    ingest.add_argument("--choices", nargs="+", help="fixed answer options: score by log-likelihood")
    ingest.add_argument(
        "--template", help="what the model is shown, {prompt} for the question (default: the format's own)"
    )
    ingest.add_argument("--option", nargs="+", default=[], metavar="KEY=VALUE", help="settings of a generator")
    ingest.add_argument("--keep-good", action="store_true", help="keep the good rows even if some are rejected")
    ingest.add_argument("--rejected", metavar="CSV", help="write rejected rows with line and reason here")
    _add_by(ingest)

    meta = add("meta-questions", "Build meta-questions: what each question asks in general.")
    meta.add_argument("--method", choices=["template", "llm"], default="template")
    meta.add_argument("--task", action="append", default=[], help="only this task (may be repeated)")
    meta.add_argument("--model", help="model of the llm method")
    meta.add_argument("--base-url", help="OpenAI-compatible server of the llm method")
    meta.add_argument("--device", help="as a job of its own, a local model on: cpu (default), auto or cuda:N")
    _add_set(meta)
    _add_shards(meta)

    embed = add("embed", "Embed questions or meta-questions.")
    _add_of(embed, both=False)
    embed.add_argument("--task", action="append", default=[], help="only this task (may be repeated)")
    embed.add_argument("--device", help="as a job of its own, on: auto, cpu or cuda:N")
    _add_by(embed)
    _add_shards(embed)

    cluster = add("cluster", "Draw the map (UMAP) and find clusters (HDBSCAN).")
    _add_of(cluster)
    cluster.add_argument("--min-cluster-size", type=int)
    cluster.add_argument("--neighbours", type=int)
    cluster.add_argument("--seed", type=int)
    cluster.add_argument("--task", action="append", default=[], help="only this task (may be repeated)")
    _add_set(cluster)

    clusters = add("clusters", "List the clusters of the newest map, or change them: each change can be undone.")
    acts = ["list", "rename", "merge", "split", "move", "absorb", "undo"]
    clusters.add_argument("act", nargs="?", default="list", choices=acts, help="absorb: noise goes to its neighbours'")
    clusters.add_argument("--cluster", type=int, nargs="+", default=[], metavar="N", help="which clusters")
    clusters.add_argument("--name", help="rename: the name; empty: its keywords again")
    clusters.add_argument("--into", type=int, metavar="N", help="merge, move: the cluster; move without it: a new one")
    clusters.add_argument("--parts", type=int, metavar="N", help="split: how many; by default as many as fit best")
    clusters.add_argument("--question", nargs="+", default=[], metavar="ID", help="move: these questions")
    clusters.add_argument("--event", metavar="ID", help="undo: the act, as it was named")
    _add_by(clusters)


def _add_skill_verbs(add: Add) -> None:
    label = add("label", "State which skill questions need.")
    label.add_argument("--skill", help="name of the skill; created if it does not exist")
    _add_by(label, required=True)
    what = label.add_mutually_exclusive_group(required=True)
    what.add_argument("--question", nargs="+", metavar="ID")
    what.add_argument("--cluster", type=int, metavar="N", help="all questions of a cluster of the newest map")
    what.add_argument("--file", metavar="CSV", help="columns question_id, skill")

    find = add("find", "Find questions; of several options all must hold, of several values of one option any.")
    find.add_argument("--text", help='words that all occur, in any case; "in quotes": as written')
    find.add_argument("--task", action="append", default=[])
    find.add_argument(
        "--skill", action="append", default=[], metavar="NAME", help="labelled or suggested; none: neither"
    )
    find.add_argument(
        "--cluster", action="append", default=[], type=int, metavar="N", help="of the newest map; -1: the noise"
    )
    find.add_argument("--author", action="append", default=[], metavar="PERSON", help="who labelled it")
    find.add_argument(
        "--confidence-from", type=float, metavar="P", help="1 for a label, a suggestion's probability else"
    )
    find.add_argument("--confidence-below", type=float, metavar="P")
    find.add_argument(
        "--outcome", action="append", default=[], choices=["all-correct", "mixed", "all-incorrect"],
        help="over all evaluated experts",
    )  # fmt: skip
    find.add_argument("--like", metavar="ID", help="the other questions, the most similar first")
    find.add_argument("--limit", type=int, help="name at most so many; n still counts all")

    chosen = add("next", "Choose the questions to label next: those that teach most.")
    _add_of(chosen)
    chosen.add_argument("--count", type=int, default=10, help="how many questions")
    chosen.add_argument("--out", metavar="CSV", help="column question_id, in order")
    chosen.add_argument("--seed", type=int, default=0)

    constrain = add("constrain", "State that two questions or clusters need the same skill, or different ones.")
    constrain.add_argument(
        "relation", choices=["same", "different", "list", "retract"], help="list: what stands; retract: take one back"
    )
    sides = constrain.add_mutually_exclusive_group()
    sides.add_argument("--question", nargs=2, metavar="ID")
    sides.add_argument("--cluster", nargs=2, type=int, metavar="N", help="two clusters of the newest map")
    sides.add_argument("--event", metavar="ID", help="the constraint to retract")
    _add_by(constrain)

    suggest = add("suggest", "Suggest skills for unlabelled questions.")
    _add_of(suggest)
    suggest.add_argument("--out", metavar="CSV", help="columns question_id, skill, probability, source")
    suggest.add_argument("--seed", type=int, default=0)
    _add_by(suggest)

    freeze = add("freeze", "Freeze labels, and suggestions above a threshold, as a labelling.")
    freeze.add_argument("name")
    freeze.add_argument(
        "--threshold", type=float, default=0.5, help="least probability of a suggestion (1.01: labels only)"
    )
    _add_by(freeze)

    plan = add("plan", "Say which skills go to which expert. Without --labelling the present state is frozen first.")
    plan.add_argument("name")
    plan.add_argument(
        "--assign", nargs="+", required=True, metavar="SKILL=EXPERT", help="the expert 'base' means: no adapter"
    )
    plan.add_argument("--labelling", help="labelling it rests on (default: freeze the present labels and suggestions)")
    plan.add_argument("--threshold", type=float, default=0.5, help="least probability of a suggestion when freezing")
    _add_by(plan)


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--plan", help="plan to train under (default: the newest)")
    source.add_argument("--task", dest="tasks", nargs="+", metavar="TASK", help="all questions of these tasks instead")
    source.add_argument("--data", metavar="RUN", help="the rows of a data selection instead")
    _add_run_options(parser)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", help="base model: smollm2-135m, a local folder or a hub id")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--device", help="auto, cpu or cuda:N")
    parser.add_argument("--limit", type=int, help="at most so many training questions")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--wait", action="store_true", help="return when the run has ended")
    _add_set(parser)
    _add_on(parser)


def _add_sequence_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the steps are called NAME-1, NAME-2 and so on")
    parser.add_argument(
        "--order", nargs="+", required=True, metavar="X", help="experts of --plan, or without it tasks, in order"
    )
    parser.add_argument("--plan", help="plan whose experts are learnt one after the other")
    parser.add_argument("--replay", type=float, help="share of each earlier step's questions that is read again")
    _add_run_options(parser)


def _add_mixture_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")
    parser.add_argument("--experts", required=True, metavar="A,B,…", help="experts of the bank, in gate order")
    parser.add_argument("--mode", choices=get_args(RoutingMode))
    parser.add_argument("--top-k", type=int, help="experts chosen per token")
    _add_training_options(parser)


def _add_expert_verbs(add: Add) -> None:
    imported = add("import", "Bring a LoRA adapter trained elsewhere into the bank.")
    imported.add_argument("source", help="a PEFT folder or a hub id")
    imported.add_argument("name", help="its name in the bank")
    imported.add_argument("--base", help="base model it belongs to")
    imported.add_argument("--trained-on", nargs="+", default=[], metavar="TASK")
    _add_by(imported)

    select = add("select", "Choose experts of the bank for a task by how they do on K of its questions.")
    select.add_argument("--task", required=True, help="task the experts are wanted for")
    select.add_argument("--k", type=int, help="K: shots, questions of the task with known answers (default 50)")
    select.add_argument("--shortlist", type=int, help="M: the best by accuracy and perplexity (default 8)")
    select.add_argument("--experts", type=int, help="N: experts to choose from the shortlist (default 4)")
    select.add_argument("--draws", type=int, help="draws of K shots that are averaged (default 3)")
    select.add_argument("--candidates", metavar="A,B,…", help="adapters (default: all experts on the base model)")
    select.add_argument("--base", help="base model: smollm2-135m, a local folder or a hub id")
    select.add_argument("--split", choices=["train", "validation", "test"], help="where the shots come from")
    select.add_argument("--device", help="auto, cpu or cuda:N")
    select.add_argument("--seed", type=int, help="of the first draw")
    _add_set(select)
    _add_on(select)

    data = add("select-data", "Choose training rows like the K shots of a task, unlike each other, and no leaks.")
    data.add_argument("--task", required=True, help="target task: what the rows are to teach")
    data.add_argument("--pool", metavar="FILE", help="a file to choose from, hub:REPO[:CONFIG] or reasoning_gym:NAME")
    data.add_argument(
        "--pool-task", action="append", default=[], metavar="TASK", help="choose from this task's train questions"
    )
    data.add_argument("--budget", type=int, metavar="N", help="rows to choose, beside the K shots")
    data.add_argument("--tau", type=float, help="of two rows more similar than this, one is dropped; 1: none is")
    data.add_argument("--k", type=int, help="train questions of the task that guide the choice")
    data.add_argument("--encoder", help="minilm (English), e5 (Chinese and English) or a hub id")
    data.add_argument("--limit", type=int, help="at most so many rows of the pool")
    data.add_argument("--seed", type=int, help="seed of the K shots, and of a generator")
    data.add_argument(
        "--map", nargs="+", default=[], metavar="FIELD=COLUMN", help="fields: prompt choices answer explanation split"
    )
    data.add_argument("--keep-good", action="store_true", help="keep the good rows even if some cannot be read")
    data.add_argument("--out", metavar="CSV", help="write each row with its decision and reason here")
    _add_set(data)

    train = add("train", "Train an expert, the mixed-data baseline, a sequence, or a mixture.")
    kinds = train.add_subparsers(dest="kind", required=True, metavar="expert|mixed|sequence|moe")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
    expert = kinds.add_parser("expert", parents=[common], help="one expert of a plan")
    expert.add_argument("name")
    _add_training_options(expert)
    mixed = kinds.add_parser("mixed", parents=[common], help="one adapter on all skills together")
    mixed.add_argument("name", nargs="?", default="mixed")
    _add_training_options(mixed)
    sequence = kinds.add_parser("sequence", parents=[common], help="one adapter, task after task, kept after each")
    _add_sequence_options(sequence)
    moe = kinds.add_parser("moe", parents=[common], help="a mixture of experts")
    _add_mixture_options(moe)
    alias = add("moe", "Train a mixture of experts (the same as `train moe`).")
    alias.set_defaults(kind="moe")
    _add_mixture_options(alias)

    publish = add("publish", "Write a mixture or an adapter as a folder that others can load.")
    publish.add_argument("system")
    publish.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    publish.add_argument(
        "--form", choices=["routed", "adapter", "model"],
        help="routed: routers and experts; adapter: one PEFT adapter (constant weights only); model: base and adapter",
    )  # fmt: skip


def _add_result_verbs(add: Add) -> None:
    evaluate = add("evaluate", "Let systems answer questions, and score them.")
    evaluate.add_argument("--system", nargs="+", action="extend", required=True)
    evaluate.add_argument("--task", nargs="+", action="extend", required=True)
    evaluate.add_argument("--split", choices=["train", "validation", "test"])
    evaluate.add_argument("--limit", type=int, help="at most so many questions per task")
    evaluate.add_argument("--n-shot", type=int)
    evaluate.add_argument("--device")
    _add_set(evaluate)
    _add_shards(evaluate)

    outcomes = add("outcomes", "All-correct, mixed and all-incorrect per task over a set of experts.")
    outcomes.add_argument("--experts", metavar="A,B,…", help="experts to compare (default: all)")
    outcomes.add_argument("--task", nargs="+", action="extend", default=[])
    forgetting = add("forgetting", "Accuracy of each system on each task, and the difference to the base model.")
    forgetting.add_argument("--task", nargs="+", action="extend", default=[])
    forgetting.add_argument("--system", nargs="+", action="extend", default=[])
    for verb in (outcomes, forgetting):
        verb.add_argument("--way", metavar="'REGIME N-shot'", help="where tasks were scored in several ways: this one")
        verb.add_argument(
            "--metric",
            choices=("acc_norm", "strict"),
            help="measure stored answers otherwise: acc_norm, options by log-likelihood a character; strict, numbers "
            "only after '#### ' (default: as scored)",
        )
    activations = add("activations", "How much each expert of a mixture is used, by layer and by skill.")
    activations.add_argument("--system", help="mixture (default: the newest evaluated)")
    activations.add_argument("--task", nargs="+", action="extend", default=[])
    study = add("study", "Compare a mixture of chosen experts with everything simpler; the same command lets it go on.")
    study.add_argument("name")
    study.add_argument("--target", nargs="+", action="extend", default=[], metavar="TASK", help="what it is about")
    study.add_argument("--base", help="base model: smollm2-135m, a local folder or a hub id")
    study.add_argument("--device", help="auto, cpu or cuda:N")
    study.add_argument("--wait", action="store_true", help="return when it is done")
    study.add_argument("--minutes", type=float, metavar="N", help="wait at most so long, then save and stop")
    study.add_argument("--stop", action="store_true", help="save and stop what runs; start nothing more")
    study.add_argument("--show", action="store_true", help="say how it stands; start nothing")
    study.add_argument("--table", metavar="FILE.md", help="write it down as Markdown; start nothing")
    _add_set(study)
    force = add("force", "What a mixture answers with every token sent to one expert, for each, beside as routed.")
    force.add_argument("--system", required=True, help="mixture")
    force.add_argument("--question", nargs="+", action="extend", required=True, metavar="ID")
    force.add_argument("--device")
    _add_set(force)
    _add_on(force)
    sql = add("sql", "Run one SELECT on a read-only copy of the database.")
    sql.add_argument("statement")
    sql.add_argument("--limit", type=int, default=1000, help="at most so many rows")
    sql.add_argument("--timeout", type=float, default=20.0, metavar="SECONDS")
    report = add("report", "Write the report of the workspace as Markdown.")
    report.add_argument("--out", default="report.md", metavar="FILE")


def _add_workspace_verbs(add: Add) -> None:
    jobs = add("jobs", "List runs, look at one, or stop, cancel, resume, retry or move it: the Jobs page over ssh.")
    acts = ["list", "show", "stop", "cancel", "resume", "retry", "move"]
    jobs.add_argument(
        "act", nargs="?", default="list", choices=acts, help="stop: save first; cancel: keep nothing; retry: from anew"
    )
    jobs.add_argument("run", nargs="*", help="its id, or a part of it that no other id has")
    jobs.add_argument("--state", choices=get_args(RunState), help="list: only these")
    jobs.add_argument("--limit", type=int, default=20, help="list: at most so many, newest first")
    jobs.add_argument("--lines", type=int, default=20, metavar="N", help="show: the last N lines of the log")
    jobs.add_argument("--before", metavar="RUN", help="move: start before this one; without it, last")
    _add_by(jobs)
    ui = add("ui", "Open the dashboard.")
    ui.add_argument("--port", type=int, default=8501)
    ui.add_argument("--address", default="127.0.0.1")
    demo = add("demo", "Open a copy of the recorded demo workspace, or record it anew with --record.")
    demo.add_argument(
        "--record", action="store_true", help="run the whole loop from nothing (about half an hour on two cores)"
    )
    demo.add_argument("--out", metavar="DIR", help="where the recorded demo is kept (default: data/demo)")
    add("doctor", "What is installed, which devices and models can be reached, what is wrong and how to mend it.")
    add("rebuild", "Make the database again from events and runs.")
    add("repair", "Mend a database whose write-ahead log is damaged, keeping a copy.")
